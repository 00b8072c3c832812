"""ReLU, Gated and JumpReLU against SAELens 6.54.12, run in float64 with a decoder of free norms.

Its Gated lets the auxiliary reconstruction train the decoder, which the paper and we hold constant;
the gradients of W_dec and b_dec are equal once that is allowed, all others in any case. Its
JumpReLU gives the gradient of a threshold, ours that of its logarithm: theta times theirs.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from sparsecraft.core.kinds import CodeStep
from sparsecraft.methods.codes.gated import Gated
from sparsecraft.methods.codes.jumprelu import JumpReLU
from sparsecraft.methods.codes.relu import ReLU
from sparsecraft.model.sae import SparseAutoencoder

ARRAYS = np.load(Path(__file__).with_name("sae_family_activations.npz"))
THETA = 0.3
# SAELens keeps thresholds in float32 whatever the other types.
TOLERANCES = {"own_log_threshold": 1e-6}
NAMES = {
    "own_log_scale": "r_mag",
    "own_magnitude_bias": "b_mag",
    "own_log_threshold": "threshold",
}
METHODS = {
    "standard": ReLU(l1=0.1),
    "gated": Gated(l1=0.1),
    "jumprelu": JumpReLU(l0=0.05, bandwidth=0.5, threshold=THETA, pre_activation=0.0),
}
PARTS = {
    "standard": {"l1": "l1_loss"},
    "gated": {"l1": "l1_loss", "gate_reconstruction": "auxiliary_reconstruction_loss"},
    "jumprelu": {"l0": "l0_loss"},
}


def tensor(name):
    return torch.from_numpy(ARRAYS[name]).double()


def autoencoder(name):
    sae = SparseAutoencoder(10, 32, METHODS[name]).double()
    values = {part: tensor(part) for part in ("W_dec", "W_enc", "b_enc", "b_dec")}
    if name == "gated":
        values |= {"own_log_scale": tensor("rmag"), "own_magnitude_bias": tensor("bmag")}
    with torch.no_grad():
        for part, value in values.items():
            getattr(sae, part).copy_(value)
    return sae


def trained(name, frozen=True):
    """Returns the autoencoder with gradients, its reconstruction, and its losses by name."""
    sae, x = autoencoder(name), tensor("x")
    u = sae.pre_activations(x)
    z = sae.code_of(x, u=u)
    out = sae.decode(z)
    decoder, bias = sae.W_dec, sae.b_dec
    if frozen:
        decoder, bias = decoder.detach(), bias.detach()
    step = CodeStep(
        x=x,
        target=x,
        u=u,
        z=z,
        reconstruction=out,
        frozen_decode=lambda code: code @ decoder + bias,
        decoder=sae.decoder_rows(),
        gradient=None,
        warmth=1.0,
        dead=torch.zeros(32, dtype=torch.bool),
    )
    losses = sae.activation.losses(step, sae.own)
    ((out - x).square().sum(1).mean() + sum(losses.values())).backward()
    return sae, out, z, losses


@pytest.mark.parametrize("name", METHODS)
def test_codes_outputs_and_losses(name):
    _, out, z, losses = trained(name)
    close = {"rtol": 0, "atol": 1e-9}
    np.testing.assert_allclose(out.detach(), ARRAYS[f"{name}_sae_out"], **close)
    np.testing.assert_allclose(z.detach(), ARRAYS[f"{name}_feature_acts"], **close)
    assert losses.keys() == PARTS[name].keys()
    for ours, theirs in PARTS[name].items():
        assert losses[ours].item() == pytest.approx(float(ARRAYS[f"{name}_loss_{theirs}"]), 1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_gradients(name):
    sae, *_ = trained(name, frozen=False)
    for ours, parameter in sae.named_parameters():
        theirs = NAMES.get(ours, ours)
        if name == "gated" and ours == "b_enc":
            theirs = "b_gate"
        wanted = tensor(f"{name}_grad_{theirs}")
        if ours == "own_log_threshold":
            wanted = THETA * wanted
        np.testing.assert_allclose(
            parameter.grad, wanted, rtol=0, atol=TOLERANCES.get(ours, 1e-9), err_msg=ours
        )


def test_the_gates_reconstruction_trains_the_encoder_alone():
    free, *_ = trained("gated", frozen=False)
    held, *_ = trained("gated")
    x = tensor("x")
    for name in ("W_enc", "b_enc", "own_log_scale", "own_magnitude_bias"):
        torch.testing.assert_close(
            held.get_parameter(name).grad, free.get_parameter(name).grad, rtol=0, atol=1e-9
        )
    gates = held.pre_activations(x).relu().detach()
    from_gates = 2 * gates.T @ (gates @ held.W_dec + held.b_dec - x) / len(x)
    difference = free.W_dec.grad - held.W_dec.grad
    torch.testing.assert_close(difference, from_gates.detach(), rtol=0, atol=1e-9)
    assert difference.abs().max() > 1
