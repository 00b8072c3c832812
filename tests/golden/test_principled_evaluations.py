"""Evaluation of dictionaries against amakelov/sae, in float64.

The official functions work on activations divided by a scale; our autoencoders read raw ones, so
here that scale is folded into the weights, as `fit` folds it. The official least-squares codes were
not usable (see the card of the oracle): a NumPy solution of the same design stands in for them.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsecraft import SparseAutoencoder
from sparsecraft.domains.interpretability.editing import f1_edit, greedy_edit
from sparsecraft.domains.interpretability.feature_scores import (
    feature_f1,
    feature_weights,
    value_masks,
)
from sparsecraft.domains.interpretability.latent_amplitudes import amplitudes, directions
from sparsecraft.domains.interpretability.supervised_dictionary import SupervisedDictionary
from sparsecraft.methods.codes.attribution_sae import AttributionSAE
from sparsecraft.methods.codes.relu import ReLU
from sparsecraft.model.sae.objective import objective

ARRAYS = dict(np.load(Path(__file__).parent / "principled_evaluations.npz"))
NAMES = ("io", "s", "io_pos")


def array(name):
    return torch.from_numpy(ARRAYS[name])


@pytest.fixture
def attributes():
    return {name: array(f"attr_{name}") for name in NAMES}


@pytest.fixture
def changed(attributes):
    return {"io": (attributes["io"] + 1) % 5, "io_pos": 1 - attributes["io_pos"]}


@pytest.fixture
def sae():
    """The official vanilla autoencoder, its scale folded in."""
    scale = float(ARRAYS["normalize_scale"])
    made = SparseAutoencoder(8, 24, ReLU(l1=5.0)).double()
    with torch.no_grad():
        made.W_dec.copy_(array("w_W_dec") * scale)
        made.b_dec.copy_(array("w_b_dec") * scale)
        made.W_enc.copy_(array("w_W_enc") / scale)
        made.b_enc.copy_(array("w_b_enc"))
    return made


def close(found, name, tolerance=1e-9):
    expected = array(name).to(found.dtype)
    return torch.allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_mean_codes(attributes, name):
    fitted = SupervisedDictionary("mean").fit(array("A"), attributes)
    assert close(fitted.codes[name], f"meancode_{name}", 1e-5)
    assert close(fitted.bias[None], "meancode_bias")


def test_reconstructions_by_mean_codes(attributes):
    fitted = SupervisedDictionary("mean").fit(array("A"), attributes)
    assert close(fitted.reconstruct(attributes), "meancode_recon", 1e-5)


def test_reconstructions_by_least_squares(attributes):
    fitted = SupervisedDictionary("mse").fit(array("A"), attributes)
    assert close(fitted.reconstruct(attributes), "msecode_recon_numpy_minnorm")


@pytest.mark.parametrize(
    ("method", "name"),
    [("arithmetic", "edit_arithmetic"), ("zero_subspace", "edit_zero_ablate_subspace")],
)
def test_edits_of_attributes(attributes, changed, method, name):
    fitted = SupervisedDictionary("mean").fit(array("A"), attributes)
    assert close(fitted.edit(array("A"), attributes, changed, method), name, 1e-5)


def test_codes_of_the_autoencoder(sae):
    assert close(amplitudes(sae, array("A")), "vanilla_acts")
    assert close(sae(array("A")) / float(ARRAYS["normalize_scale"]), "vanilla_recon")


@pytest.mark.parametrize("what", ["precision", "recall", "f1"])
def test_scores_of_features(what, attributes):
    scores = feature_f1(array("active_pattern").bool(), value_masks(attributes["io"], 5))
    found, official = getattr(scores, what), array(f"score_{what}_io")
    there = ~official.isnan()
    assert torch.allclose(found[there], official[there], rtol=1e-9)
    assert bool((found[~there].nan_to_num(0.0) == 0).all())


def test_order_by_f1(attributes):
    scores = feature_f1(array("active_pattern").bool(), value_masks(attributes["io"], 5)).f1
    ranked = scores.T.sort(dim=1, descending=True).values
    official = array("f1rank_scores_io").double()
    official = official.masked_fill(official.isinf() | official.isnan(), 0.0)
    assert torch.allclose(ranked, official, atol=1e-6)


@pytest.mark.parametrize("k", [1, 3])
def test_greedy_edits(sae, k):
    edit = greedy_edit(sae, array("A"), array("A_cf"), k)
    assert close(edit.edited, f"greedy_k{k}_edited")


def test_greedy_choices_and_distances(sae):
    edit = greedy_edit(sae, array("A"), array("A_cf"), 3)
    assert torch.equal(edit.removed, array("greedy_k3_features"))
    scale = float(ARRAYS["normalize_scale"])
    assert close(edit.distances / scale, "greedy_k3_scores")


def test_f1_edits(sae, attributes):
    # Their order of equal scores is arbitrary, so theirs is taken: the better, the higher.
    order = array("f1rank_io").argsort(dim=1).double()
    new = (attributes["io"] + 1) % 5
    edit = f1_edit(sae, array("A"), array("A_cf"), -order.T, attributes["io"], new, 2)
    assert close(edit.edited, "f1edit_edited")


def test_weights_of_features(sae):
    found = feature_weights(amplitudes(sae, array("A")), directions(sae))
    assert close(found, "feature_weights")


def test_losses_and_gradients_of_the_attribution_autoencoder():
    """Of normalised activations; gradients of decoder rows without what lies along them.

    Our L1 norm is weighted by the norms of these rows, which are 1 here to seven digits; so many
    have the official losses, which are kept in single precision.
    """
    activation = AttributionSAE(l1=5.0, attribution=10.0, unexplained=10.0, normalize_grad=False)
    made = SparseAutoencoder(8, 24, activation).double()
    with torch.no_grad():
        for name in ("W_dec", "W_enc", "b_enc", "b_dec"):
            getattr(made, name).copy_(array(f"w_{name}"))
    found = objective(made, array("normalize_A"), gradient=array("attr_grad_in"))
    parts = {"l1": 5 * array("attr_l1"), "attribution": 10 * array("attr_sparsity")}
    parts |= {"unexplained": 10 * array("attr_unexplained"), "reconstruction": array("attr_l2")}
    for name, expected in parts.items():
        torch.testing.assert_close(found.parts[name], expected.double(), rtol=1e-6, atol=1e-6)
    found.total.backward()
    for name in ("W_enc", "b_enc", "b_dec"):
        assert close(getattr(made, name).grad, f"attr_grad_{name}", 1e-6)
    rows = array("w_W_dec")
    across = lambda g: g - (g * rows).sum(1, keepdim=True) * rows  # noqa: E731
    torch.testing.assert_close(
        across(made.W_dec.grad), across(array("attr_grad_W_dec")), rtol=1e-6, atol=1e-6
    )
