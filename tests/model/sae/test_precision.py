"""precision="bfloat16": only the encoder's product is rounded; losses and gradients are float32."""

import pytest
import torch

from sparsecraft.core.seeds import generator
from sparsecraft.methods.codes.gated import Gated
from sparsecraft.methods.codes.group_bias_adaptation import GroupBiasAdaptation, gba_autoencoder
from sparsecraft.methods.codes.jumprelu import JumpReLU
from sparsecraft.methods.codes.relu import ReLU
from sparsecraft.model.sae import SAETraining, SparseAutoencoder
from sparsecraft.model.sae.objective import objective

ACTIVATIONS = [ReLU(l1=0.1), Gated(l1=0.1), JumpReLU(l0=0.1), GroupBiasAdaptation(groups=2)]


def rows(count=256):
    return torch.randn(count, 24, generator=generator(1, "rows"))


def worked(activation, precision):
    """Returns the losses and the gradients of one batch, at biases that keep a fifth of entries."""
    if isinstance(activation, GroupBiasAdaptation):
        sae = gba_autoencoder(24, 96, activation)
    else:
        sae = SparseAutoencoder(24, 96, activation)
    with torch.no_grad():
        sae.b_enc.fill_(-0.17 if sae.tied else -0.83)
    found = objective(sae, rows(), precision=precision)
    found.total.backward()
    return found, {n: p.grad for n, p in sae.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_losses_and_gradients_are_close_to_those_of_float32(activation):
    (rough, rough_gradients), (exact, gradients) = (
        worked(activation, precision) for precision in ("bfloat16", "float32")
    )
    assert not torch.equal(rough.u, exact.u)
    # Rows have norms of about 5 and directions of 1: three roundings of at most 2^-9 each.
    bound = 3.02 * 2**-9 * float(exact.inner.norm(dim=1).max()) + 1e-6
    assert float((rough.u - exact.u).abs().max()) <= bound
    for tensor in (rough.u, rough.z, rough.reconstruction, *rough_gradients.values()):
        assert tensor.dtype == torch.float32
    assert rough.total.item() == pytest.approx(exact.total.item(), rel=0.01)
    assert rough_gradients.keys() == gradients.keys()
    for name in ("W_enc", "W_dec", "b_dec"):
        if name in gradients:
            error = (rough_gradients[name] - gradients[name]).norm() / gradients[name].norm()
            assert float(error) < 0.05, name
            # A bfloat16 would have been rounded to 8 bits; no more than a few entries are so.
            whole = rough_gradients[name]
            assert float((whole == whole.bfloat16().float()).double().mean()) < 0.05, name


def test_a_bias_moves_by_less_than_bfloat16_can_say():
    sae, x = SparseAutoencoder(24, 96, ReLU()), rows(8)
    before = sae.pre_activations(x, "bfloat16")
    with torch.no_grad():
        sae.b_enc.fill_(1e-5)
    moved = sae.pre_activations(x, "bfloat16") - before
    torch.testing.assert_close(moved, torch.full_like(moved, 1e-5), atol=1e-6, rtol=0)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_both_train_to_the_same_error(activation):
    found = []
    for precision in ("bfloat16", "float32"):
        sae = SparseAutoencoder(24, 96, activation)
        training = SAETraining(steps=40, batch=64, learning_rate=3e-3, precision=precision)
        found.append(sae.fit(rows(1000), training).report.fvu)
    assert found[0] == pytest.approx(found[1], rel=0.02)
