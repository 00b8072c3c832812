"""The optimiser of dictionaries against torch.optim.Adam, with what is done around it."""

import copy

import pytest
import torch

from sparsecraft.core.errors import InvalidValue
from sparsecraft.kernels.backends import use_backend
from sparsecraft.model.sae.optimiser import DictionaryAdam


@pytest.fixture(params=["torch", "numba"])
def backend(request):
    with use_backend(request.param):
        yield request.param


def parameters():
    """Returns a dictionary with rows of norm one, an encoder stored by column, and a bias."""
    stream = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(20, 7, generator=stream), dim=1)
    encoder = torch.randn(20, 7, generator=stream).T
    return [torch.nn.Parameter(t) for t in (atoms, encoder, torch.zeros(20))]


def optimiser(trained, **options):
    groups = [{"params": trained[:1], "unit_rows": True}, {"params": trained[1:]}]
    return DictionaryAdam(groups, **options)


def set_gradients(trained, seed):
    """Gradients of which every third row is zero, as of latents that were not selected."""
    stream = torch.Generator().manual_seed(100 + seed)
    for parameter in trained:
        parameter.grad = torch.randn(parameter.shape, generator=stream)
        parameter.grad[::3] = 0


def test_it_is_clip_projection_adam_and_norm(backend):
    ours, theirs = parameters(), parameters()
    made = optimiser(ours, lr=0.01, max_norm=1.0)
    adam = torch.optim.Adam(theirs, lr=0.01)
    for step in range(40):
        set_gradients(ours, step)
        set_gradients(theirs, step)
        made.step()
        torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        with torch.no_grad():
            atoms, gradient = theirs[0], theirs[0].grad
            gradient -= (gradient * atoms).sum(1, keepdim=True) * atoms
        adam.step()
        with torch.no_grad():
            atoms /= atoms.norm(dim=1, keepdim=True)
    for one, other in zip(ours, theirs, strict=True):
        assert float((one - other).detach().abs().max()) < 1e-6
    assert ours[1].stride() == made.state[ours[1]]["exp_avg"].stride() == (1, 7)


def test_a_scale_from_outside_is_a_clip_from_inside(backend):
    ours, theirs = parameters(), parameters()
    made, other = optimiser(ours, lr=0.01, max_norm=1.0), optimiser(theirs, lr=0.01)
    set_gradients(ours, 0)
    set_gradients(theirs, 0)
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in theirs]))
    made.step()
    other.step(scale=1.0 / (norm + 1e-6))
    assert norm > 1
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_saved_state_goes_on_exactly_and_loads_into_adam(backend, tmp_path):
    whole, halves = parameters(), parameters()
    made = optimiser(whole, lr=0.01)
    for step in range(6):
        set_gradients(whole, step)
        made.step()
    made = optimiser(halves, lr=0.01)
    for step in range(3):
        set_gradients(halves, step)
        made.step()
    torch.save(made.state_dict(), tmp_path / "state.pt")
    resumed = optimiser(halves, lr=0.5)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt"))
    for step in range(3, 6):
        set_gradients(halves, step)
        resumed.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, halves, strict=True))
    adam = torch.optim.Adam(whole[1:], lr=0.01)
    adam.state.update(
        {p: copy.deepcopy(resumed.state[q]) for p, q in zip(whole, halves, strict=True)}
    )
    set_gradients(whole, 6)
    set_gradients(halves, 6)
    adam.step()
    resumed.step()
    assert torch.allclose(whole[1], halves[1], atol=1e-6)


def test_moments_that_were_loaded_by_row_are_laid_by_column(backend):
    trained = parameters()
    made = optimiser(trained, lr=0.01)
    set_gradients(trained, 0)
    made.step()
    state = made.state[trained[1]]
    state["exp_avg"] = state["exp_avg"].contiguous()
    set_gradients(trained, 1)
    made.step()
    assert made.state[trained[1]]["exp_avg"].stride() == (1, 7)


def test_schedulers_and_closures_work(backend):
    trained = parameters()
    made = optimiser(trained, lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(made, lambda step: 0.5**step)
    set_gradients(trained, 0)
    assert made.step(lambda: 7.0) == 7.0
    schedule.step()
    assert [group["lr"] for group in made.param_groups] == [0.05, 0.05]


def test_parameters_without_gradient_are_left_alone(backend):
    trained = parameters()
    before = [p.detach().clone() for p in trained]
    trained[0].grad = None
    optimiser(trained, max_norm=1.0).step()
    assert all(torch.equal(a, b) for a, b in zip(trained, before, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 is not allowed: give a number of at least 0"),
        ({"betas": (0.9, 1.0)}, "give two numbers in"),
        ({"eps": -1e-8}, "eps=-1e-08 is not allowed"),
        ({"max_norm": 0.0}, "max_norm=0.0 is not allowed: give a number above 0, or None"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(InvalidValue, match=message):
        optimiser(parameters(), **options)


def test_unit_rows_of_a_vector_are_refused():
    bias = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(InvalidValue, match=r"shape \(3,\) was given. Put it into a group without"):
        DictionaryAdam([{"params": [bias], "unit_rows": True}])
