"""Gradient-weighted TopK against our own float64 NumPy reference (no official code exists)."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sparsecraft.core.attribution import influence
from sparsecraft.core.kinds import Side
from sparsecraft.methods.codes.gradient_topk import GradientTopK
from sparsecraft.model.sae import SparseAutoencoder

ARRAYS = np.load(Path(__file__).with_name("gsae.npz"))
VARIANTS = {
    "beta0": {"beta": 0.0},
    "sum_beta5": {"beta": 5.0},
    "sum_beta50": {"beta": 50.0},
    "product": {"mode": "product"},
}
CLOSE = {"rtol": 0, "atol": 1e-9}


def tensor(name):
    return torch.from_numpy(ARRAYS[name])


def autoencoder(variant, **options):
    """Returns the reference's weights with a method whose gradient is not normalised."""
    method = GradientTopK(k=4, normalize_grad=False, **VARIANTS[variant], **options)
    sae = SparseAutoencoder(9, 30, method).double()
    with torch.no_grad():
        for name, source in (("W_dec",) * 2, ("W_enc",) * 2, ("b_enc",) * 2, ("b_dec", "b_pre")):
            getattr(sae, name).copy_(tensor(source))
    return sae


def downstream(x):
    """Returns the loss of each token in the network that stands for the model's upper layers."""
    hidden = torch.tanh(x @ tensor("net_W1") + tensor("net_b1"))
    logits = hidden @ tensor("net_W2") + tensor("net_b2")
    return F.cross_entropy(logits, tensor("labels"), reduction="none")


def test_the_gradient_is_that_of_the_summed_loss():
    x = tensor("x").requires_grad_()
    loss = downstream(x)
    loss.sum().backward()
    np.testing.assert_allclose(loss.detach(), ARRAYS["downstream_loss_per_token"], **CLOSE)
    np.testing.assert_allclose(x.grad, ARRAYS["grad_x_sum_reduction"], **CLOSE)
    found = influence(tensor("W_dec"), x.grad)
    np.testing.assert_allclose(found, ARRAYS["influence_abs"], **CLOSE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_and_selection(variant):
    sae = autoencoder(variant)
    u = sae.pre_activations(tensor("x")).detach()
    np.testing.assert_allclose(u, ARRAYS["pre_acts"], **CLOSE)
    side = Side(sae.W_dec.detach(), tensor("grad_x_sum_reduction"))
    scores = sae.activation.scores(u, side).relu()
    np.testing.assert_allclose(scores, ARRAYS[f"{variant}_score"], **CLOSE)
    code = sae.activation.select(u, sae.own, side, training=True)
    # What the reference selects beyond the positive entries is zero in the code.
    wanted = tensor(f"{variant}_mask") * tensor("acts")
    np.testing.assert_allclose(code.dense(), wanted, **CLOSE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_reconstruction_and_parameter_gradients(variant):
    sae, x = autoencoder(variant), tensor("x")
    out = sae.decode(sae.sparse_encode(x, gradient=tensor("grad_x_sum_reduction")))
    loss = (out - x).square().sum(1).mean()
    loss.backward()
    np.testing.assert_allclose(out.detach(), ARRAYS[f"{variant}_recon"], **CLOSE)
    assert loss.item() == pytest.approx(float(ARRAYS[f"{variant}_mse_sum"]), abs=1e-9)
    for ours, theirs in (("W_dec",) * 2, ("W_enc",) * 2, ("b_enc",) * 2, ("b_dec", "b_pre")):
        wanted = ARRAYS[f"{variant}_grad_{theirs}"]
        np.testing.assert_allclose(sae.get_parameter(ours).grad, wanted, **CLOSE, err_msg=ours)
    with torch.no_grad():
        found = downstream(out)
    np.testing.assert_allclose(found, ARRAYS[f"{variant}_downstream_loss"], **CLOSE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_dead_latents_explain_the_residual_as_far_as_there(variant):
    sae, x = autoencoder(variant), tensor("x")
    out = sae.decode(sae.sparse_encode(x, gradient=tensor("grad_x_sum_reduction"))).detach()
    dead = tensor("dead_mask").nonzero()[:, 0]
    z = sae.pre_activations(x).detach().relu()[:, dead]
    top = torch.zeros_like(z).scatter(1, *reversed(z.topk(4, dim=1)))
    left = x - out
    share = (left - top @ sae.W_dec.detach()[dead]).square().sum() / left.square().sum()
    assert share.item() == pytest.approx(float(ARRAYS[f"{variant}_auxk_over_residual_ss"]), 1e-9)


def test_taking_a_latent_away_changes_the_loss_by_its_effect_to_first_order():
    x, gradient = tensor("x"), tensor("grad_x_sum_reduction")
    effects, decoder = gradient @ tensor("W_dec").T, tensor("W_dec")
    for amount in (1e-3, 1e-4):
        change = downstream(x - amount * decoder[5]) - tensor("downstream_loss_per_token")
        assert (change + amount * effects[:, 5]).abs().max() < 3 * amount**2
