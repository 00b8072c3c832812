"""Sparse coding as an activation of the autoencoder: one step, many steps, and their penalty."""

import pytest
import torch

from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.kinds import CodeStep, Own
from sparsecraft.core.penalties import by_name
from sparsecraft.core.solvers import Stopping, ista, lipschitz
from sparsecraft.methods.codes.sparse_coding import SparseCoding
from sparsecraft.model.sae import SparseAutoencoder

PENALTIES = ["l1", "l0", "lq", "log", "cel0", "mcp", "scad"]


def rows(count=6, width=8):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_one_step_is_the_prox_of_the_pre_activations(penalty):
    u = rows()
    found = SparseCoding(penalty=penalty, strength=0.3).apply(u, Own(torch.zeros(8)))
    assert torch.equal(found, by_name(penalty, strength=0.3).prox(u, 1.0))
    assert bool((found < 0).any())


@pytest.mark.parametrize("penalty", PENALTIES)
def test_an_unrolled_encoder_takes_the_steps_of_ista(penalty):
    sae = SparseAutoencoder(8, 20, SparseCoding(penalty=penalty, strength=0.1), unroll=5, tied=True)
    x = rows()
    dictionary = sae.decoder_rows().detach()
    expected = ista(x, dictionary, by_name(penalty, strength=0.1),
                    step=1 / lipschitz(dictionary),
                    stopping=Stopping(tolerance=1e-30, max_steps=5)).codes  # fmt: skip
    assert torch.allclose(sae.encode(x), expected, atol=1e-5)


def test_a_step_that_is_given_is_taken():
    sae = SparseAutoencoder(8, 20, SparseCoding(penalty="l1", strength=0.1, step=0.05), unroll=3)
    x = rows()
    expected = ista(x, sae.decoder_rows().detach(), by_name("l1", strength=0.1), step=0.05,
                    stopping=Stopping(tolerance=1e-30, max_steps=3)).codes  # fmt: skip
    assert torch.allclose(sae.encode(x), expected, atol=1e-6)


def test_many_steps_settle_and_pass_gradients():
    sae = SparseAutoencoder(8, 20, SparseCoding(penalty="l1", strength=0.05), unroll=300)
    x = rows()
    assert float((x - sae(x)).detach().square().mean()) < 0.05
    sae(x).square().sum().backward()
    assert float(sae.W_dec.grad.abs().sum()) > 0
    assert bool(torch.isfinite(sae.W_enc.grad).all())


def test_the_loss_is_the_penalty_of_a_row_times_its_warmth():
    z = torch.tensor([[1.0, -2.0], [0.0, 3.0]])
    step = CodeStep(x=z, target=z, u=z, z=z, reconstruction=z, frozen_decode=lambda each: each,
                    decoder=torch.eye(2), gradient=None, warmth=0.5,
                    dead=torch.zeros(2, dtype=torch.bool))  # fmt: skip
    losses = SparseCoding(penalty="l1", strength=0.1).losses(step, Own(torch.zeros(2)))
    assert losses["penalty"].item() == pytest.approx(0.5 * 0.1 * 6 / 2)


def test_it_stands_in_the_catalog_and_comes_back_from_its_description():
    made = catalog.build("sparse_coding", penalty="mcp", strength="0.2")
    assert made == SparseCoding(penalty="mcp", strength=0.2)
    assert catalog.restore(catalog.describe(made)) == made
    assert made.info.paper.number == 9


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"penalty": "l7"}, UnknownName, "Unknown penalty of sparse coding 'l7'"),
        ({"strength": -1}, InvalidValue, "strength=-1 is not allowed"),
        ({"step": 0}, InvalidValue, "step=0 is not allowed"),
    ],
)
def test_settings_that_are_not_allowed(options, error, message):
    with pytest.raises(error) as caught:
        SparseCoding(**options)
    assert message in str(caught.value)
