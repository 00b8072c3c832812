"""What reads scaled activations is folded into what reads raw ones, exactly."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.seeds import generator
from sparsecraft.methods.codes.gated import Gated
from sparsecraft.methods.codes.jumprelu import JumpReLU
from sparsecraft.methods.codes.relu import ReLU
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.sae import SparseAutoencoder
from sparsecraft.model.sae.row_scaling import RowScaling
from sparsecraft.model.sae.scaling import Scaling, fold, make_rows_unit

FORMS = [
    {},
    {"subtract_bias": False},
    {"tied": True},
    {"skip": True},
    {"d_out": 5},
    {"d_out": 5, "skip": True},
]


def moved(activation, **form):
    """Returns an autoencoder none of whose parameters is at its first value."""
    sae = SparseAutoencoder(6, 12, activation, **form)
    draw = generator(3, "moved")
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draw)
    return sae.double().eval()


def rows(width=6):
    return torch.randn(20, width, generator=generator(1, "rows"), dtype=torch.float64) + 0.5


@pytest.mark.parametrize("form", FORMS, ids=repr)
@pytest.mark.parametrize("activation", [TopK(k=3), ReLU(), Gated(), JumpReLU()], ids=repr)
@pytest.mark.parametrize("targets", [0.25, 2.0])
def test_folded_weights_give_on_raw_rows_what_they_gave_on_scaled_ones(activation, form, targets):
    sae, x = moved(activation, **form), rows()
    scaling = Scaling(targets if sae.subtract_bias else 0.75, targets)
    code, out = sae.encode(x * scaling.inputs), sae(x * scaling.inputs)
    fold(sae, scaling)
    torch.testing.assert_close(sae.encode(x), code)
    torch.testing.assert_close(sae(x), out / scaling.targets)


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_the_inverse_undoes_a_fold(inputs, targets):
    sae = moved(TopK(k=3))
    before = copy.deepcopy(sae.state_dict())
    fold(sae, Scaling(inputs, targets))
    fold(sae, Scaling(inputs, targets).inverse)
    for name, value in sae.state_dict().items():
        torch.testing.assert_close(value, before[name])


def test_rows_that_are_normalised_need_no_scalar():
    sae = moved(TopK(k=3), row_norm="unit")
    before = copy.deepcopy(sae.state_dict())
    fold(sae, Scaling(2.0, 2.0))
    assert all(torch.equal(value, before[name]) for name, value in sae.state_dict().items())


def test_a_row_of_zeros_has_no_direction_and_stays():
    sae = moved(TopK(k=3))
    with torch.no_grad():
        sae.W_dec[2] = 0
    make_rows_unit(sae)
    norms = sae.W_dec.norm(dim=1)
    assert norms[2] == 0
    torch.testing.assert_close(norms[3:], torch.ones_like(norms[3:]))


@pytest.mark.parametrize("norm", ["none", "unit", "layer"])
def test_what_is_taken_from_rows_is_given_back(norm):
    x = rows()
    scaling = RowScaling.of(x, norm)
    torch.testing.assert_close(scaling.undo(scaling.apply(x)), x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("norm", ["none", "unit", "layer"])
def test_gradients_follow_the_rows(norm):
    x, slope = rows(), rows()
    scaling = RowScaling.of(x, norm)
    inner = scaling.apply(x).requires_grad_()
    moved_rows = inner if scaling.size is None else inner * scaling.size
    (moved_rows * slope).sum().backward()
    torch.testing.assert_close(scaling.gradient(slope), inner.grad)


def test_layer_normalisation_is_by_the_unbiased_deviation():
    x = torch.tensor([[1.0, 3.0]])
    scaling = RowScaling.of(x, "layer")
    torch.testing.assert_close(scaling.restored, torch.tensor([[2.0**0.5]]))
    torch.testing.assert_close(scaling.apply(x), torch.tensor([[-1.0, 1.0]]) / (2**0.5 + 1e-5))
