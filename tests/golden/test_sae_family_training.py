"""SAELens 6.54 run for its selecting architectures (float64, 1e-9): forward, losses, gradients.

It ranks pre-activations times the norms of decoder rows that are not unit. Ours are unit, and the
same autoencoder is the one whose norms are folded into the encoder; gradients go back through that
fold. Its auxiliary loss is not divided by a variance, and decodes negative pre-activations too.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsecraft.core.code import Code
from sparsecraft.core.fidelity import ReconstructionSums
from sparsecraft.methods.codes.abstopk import AbsTopK
from sparsecraft.methods.codes.mutual_choice import MutualChoice
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.sae import AuxK, SparseAutoencoder
from sparsecraft.model.sae.objective import objective

GOLDEN = np.load(Path(__file__).parent / "sae_family_training.npz")
ARCHITECTURES = {
    "topk": (TopK(k=4), ()),
    "abstopk": (AbsTopK(k=4), ()),
    "batchtopk": (MutualChoice(k=4), ()),
    "matryoshka_batchtopk": (MutualChoice(k=4), (8, 16, 32)),
}
WEIGHTS = ("W_enc", "W_dec", "b_enc", "b_dec")
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def golden(name):
    return torch.from_numpy(GOLDEN[name])


def folded():
    """Returns the oracle's weights as leaves, and those of the autoencoder with unit rows."""
    leaves = {name: golden(name).requires_grad_() for name in WEIGHTS}
    norms = leaves["W_dec"].norm(dim=1)
    return leaves, {
        "W_enc": leaves["W_enc"] * norms,
        "W_dec": leaves["W_dec"] / norms[:, None],
        "b_enc": leaves["b_enc"] * norms,
        "b_dec": leaves["b_dec"] * 1,
    }


def run(name):
    """Returns the leaves, the folded weights, the autoencoder and its objective on the batch."""
    activation, prefixes = ARCHITECTURES[name]
    leaves, weights = folded()
    sae = SparseAutoencoder(10, 32, activation, prefixes=prefixes).double()
    sae.load_state_dict({**sae.state_dict(), **{k: v.detach() for k, v in weights.items()}})
    found = objective(
        sae.train(),
        golden("x"),
        dead=golden("dead_mask"),
        auxiliary=AuxK(k=5, normalise="none", rectify=False),
        prefix_loss="sum",
    )
    return leaves, weights, sae, found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_codes_and_outputs(name):
    _, _, _, found = run(name)
    assert isinstance(found.z, Code)
    torch.testing.assert_close(found.z.dense(), golden(f"{name}_feature_acts"), **EXACT)
    torch.testing.assert_close(found.reconstruction, golden(f"{name}_sae_out"), **EXACT)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_losses(name):
    _, _, _, found = run(name)
    reconstruction = golden(f"{name}_loss_mse_loss")
    if name.startswith("matryoshka"):
        inner = [golden(f"{name}_loss_inner_mse_loss_{width}") for width in (8, 16)]
        reconstruction = reconstruction + sum(inner)
    torch.testing.assert_close(found.parts["reconstruction"], reconstruction, **EXACT)
    torch.testing.assert_close(
        found.parts["auxiliary"], golden(f"{name}_loss_auxiliary_reconstruction_loss"), **EXACT
    )
    torch.testing.assert_close(found.total, golden(f"{name}_loss"), **EXACT)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_through_the_fold_of_norms(name):
    leaves, weights, sae, found = run(name)
    mine = torch.autograd.grad(found.total, [getattr(sae, key) for key in WEIGHTS])
    back = torch.autograd.grad([weights[key] for key in WEIGHTS], list(leaves.values()), list(mine))
    for key, gradient in zip(leaves, back, strict=True):
        torch.testing.assert_close(gradient, golden(f"{name}_grad_{key}"), **EXACT)


@pytest.mark.parametrize("name", ["batchtopk", "matryoshka_batchtopk"])
def test_the_running_threshold_starts_at_what_a_hundredth_of_it_is_there(name):
    """SAELens averages from 0 with rate 0.01; ours is unset first, and takes the first value."""
    _, _, sae, found = run(name)
    statistics = sae.activation.observe(found.u, found.z, sae.own, None)
    sae.activation.update(sae.own, statistics, progress=0.5)
    expected = 100 * float(golden(f"{name}_topk_threshold_after"))
    assert float(sae.own.state["threshold"]) == pytest.approx(expected, rel=1e-6)


def test_explained_variance():
    sums = ReconstructionSums()
    sums.add(golden("x"), golden("topk_sae_out"))
    assert sums.explained_variance == pytest.approx(
        float(golden("topk_explained_variance")), rel=1e-12
    )
