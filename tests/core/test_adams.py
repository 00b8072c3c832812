"""The pull on masked weights and the Adam step that it enters."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.adams import Pull, Rates, adam_step_, reach, residue, share_at
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.seeds import generator

KEEP = torch.tensor([True, False, False, False])
WEIGHT = torch.tensor([2.0, 2.0, -3.0, 0.0])
MOMENT = torch.tensor([1.0, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("pull", "expected"),
    [
        (Pull("mixed", 0.4, 0.25), [1.0, 0.85, 0.65, 0.75]),
        (Pull("added", 0.4, 0.25), [1.0, 1.1, 0.9, 1.0]),
        (Pull("weight", 0.4, 0.25), [1.0, 1.2, 0.7, 1.0]),
        (Pull("mixed", 0.4, 0.25, selective=False), [0.85, 0.85, 0.65, 0.75]),
        (Pull("mixed", 0.4, 0.0), [1.0, 1.0, 1.0, 1.0]),
        (Pull("mixed", 0.4, 1.0), [1.0, 0.4, -0.4, 0.0]),
    ],
)
def test_each_form_of_pull(pull, expected):
    torch.testing.assert_close(pull(MOMENT, WEIGHT, KEEP), torch.tensor(expected))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "l1", "strength": 1.0}, "'mixed', 'added', 'weight'"),
        ({"form": "mixed", "strength": -1.0}, "lambda is at least 0"),
        ({"form": "mixed", "strength": float("nan")}, "lambda is at least 0"),
        ({"form": "mixed", "strength": 1.0, "share": 1.01}, "beyond total_steps"),
    ],
)
def test_a_pull_out_of_range(settings, message):
    with pytest.raises(InvalidValue, match=message):
        Pull(**settings)


def test_the_share_grows_over_the_known_total():
    assert [share_at(step, 4) for step in range(4)] == [0, 0.25, 0.5, 0.75]
    with pytest.raises(InvalidValue, match="outside the 4 steps planned"):
        share_at(4, 4)
    with pytest.raises(InvalidValue, match="known total"):
        share_at(0, 0)


def stepped(pull, gradients, rates=Rates(0.01), keep=None, seed=0):  # noqa: B008
    """Returns weight, mean and square after these gradients."""
    weight = torch.randn(gradients.shape[1], generator=generator(seed, "w"), dtype=torch.float64)
    mean, square = torch.zeros_like(weight), torch.zeros_like(weight)
    for done, gradient in enumerate(gradients, start=1):
        adam_step_(weight, gradient, mean, square, done=done, rates=rates, keep=keep, pull=pull)
    return weight, mean, square


def drawn(seed, steps=5, entries=12):
    return torch.randn(steps, entries, generator=generator(seed, "g"), dtype=torch.float64)


def test_without_a_pull_it_is_adamw():
    gradients, parameter = drawn(0), torch.nn.Parameter(stepped(None, drawn(0)[:0])[0])
    adamw = torch.optim.AdamW([parameter], lr=0.01, betas=(0.8, 0.9), weight_decay=0.3)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        adamw.step()
    found, _, _ = stepped(None, gradients, Rates(0.01, (0.8, 0.9), weight_decay=0.3))
    torch.testing.assert_close(found, parameter.detach(), rtol=1e-12, atol=1e-12)


forms = st.sampled_from(["mixed", "added", "weight"])
masks = st.lists(st.booleans(), min_size=12, max_size=12).map(torch.tensor)


@given(form=forms, keep=masks, strength=st.floats(0, 10), seed=st.integers(0, 50))
def test_kept_weights_do_not_feel_the_strength(form, keep, strength, seed):
    without = stepped(Pull(form, 0.0, 0.5), drawn(seed), keep=keep)
    found = stepped(Pull(form, strength, 0.5), drawn(seed), keep=keep)
    for a, b in zip(found, without, strict=True):
        assert torch.equal(a[keep], b[keep])


@given(form=forms, keep=masks, seed=st.integers(0, 50))
def test_the_first_moment_never_holds_the_pull(form, keep, seed):
    _, plain, _ = stepped(None, drawn(seed))
    _, found, _ = stepped(Pull(form, 3.0, 0.9), drawn(seed), keep=keep)
    assert torch.equal(found, plain)


def test_coupled_moments_hold_the_pull():
    keep = torch.zeros(12, dtype=torch.bool)
    _, plain, _ = stepped(None, drawn(0))
    _, found, _ = stepped(Pull("added", 3.0, 0.9, decoupled=False), drawn(0), keep=keep)
    assert not torch.allclose(found, plain)


def test_the_second_moment_is_made_of_the_pulled_first_one():
    keep = torch.tensor([True, False])
    weight, mean, square = torch.tensor([1.0, -1.0]), torch.zeros(2), torch.zeros(2)
    gradient, pull = torch.tensor([0.5, 0.5]), Pull("mixed", 0.2, 0.5)
    adam_step_(weight, gradient, mean, square, done=1, rates=Rates(0.1), keep=keep, pull=pull)
    torch.testing.assert_close(mean, torch.tensor([0.05, 0.05]))
    # Kept: mu = 0.05. Masked: 0.5 * 0.05 - 0.5 * 0.2 = -0.075.
    torch.testing.assert_close(square, 1e-3 * torch.tensor([0.05**2, 0.075**2]))


def test_a_dominant_pull_moves_by_the_rate_in_each_step():
    keep = torch.zeros(12, dtype=torch.bool)
    start, _, _ = stepped(None, drawn(0)[:0])
    found, _, _ = stepped(Pull("mixed", 1e-6, 1.0), 0 * drawn(0)[:1], keep=keep)
    # By ten rates, because the first moment is corrected for its start, and the pull is not in it.
    torch.testing.assert_close((start - found).abs(), torch.full_like(start, 0.1), rtol=0.5, atol=0)


def test_the_reach_of_a_growing_pull():
    assert reach([], 5) == 0
    assert reach([1.0, 1.0, 1.0, 1.0], 4) == pytest.approx(1.5)
    with pytest.raises(InvalidValue, match="outside the 2 steps"):
        reach([1.0] * 3, 2)


def test_the_residue_is_of_all_layers_together():
    weights = {"a": torch.tensor([4.0, 1.0]), "b": torch.tensor([-2.0, 0.0])}
    mask = torch.tensor([True, False])
    assert residue(weights, {"a": mask, "b": mask}) == pytest.approx((1 / 2) / 3)
    assert residue(weights, {"a": torch.ones(2, dtype=torch.bool)}) == 0
