"""Learning rates of a retraining against hand-computed ones, and their laws."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.retraining import KINDS, RetrainSchedule, norm_drop

HISTORY = tuple(0.1 * (1 - step / 40) for step in range(40))


def schedule(kind="LLR", **changed):
    given = {"kind": kind, "steps": 10, "history": HISTORY, "norm_drop": 0.3}
    return RetrainSchedule(**{**given, "pruned_fraction": 0.36, **changed})


def rates(kind, **changed):
    made = schedule(kind, **changed)
    return [made.rate(step) for step in range(made.steps)]


def test_fine_tuning_keeps_the_last_rate():
    assert rates("FT") == [HISTORY[-1]] * 10


def test_rewinding_goes_through_the_last_rates_again():
    assert rates("LRW") == list(HISTORY[-10:])


def test_the_whole_history_in_fewer_steps():
    assert rates("SLR", steps=4, warm_up=0.0) == [HISTORY[i] for i in (0, 10, 20, 30)]


def test_a_line_from_the_largest_rate_to_zero():
    assert rates("LLR", steps=4, warm_up=0.0) == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_half_a_cosine_from_the_largest_rate_to_the_smallest():
    low = HISTORY[-1]
    wanted = [low + (0.1 - low) * (1 + math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    assert rates("CLR", steps=4, warm_up=0.0) == pytest.approx(wanted)


def test_the_warm_up_is_half_a_cosine_to_the_first_rate():
    found = rates("LLR", steps=20, warm_up=0.2)
    wanted = [0.1 * (1 - math.cos(math.pi * k / 4)) / 2 for k in range(4)]
    assert found[:4] == pytest.approx(wanted)
    assert found[4] == 0.1


@pytest.mark.parametrize(
    ("drop", "steps", "start"),
    [
        (0.3, 10, 0.05),  # 0.3 / sqrt(0.36), between the bounds
        (0.01, 10, 0.025),  # never below the share of the pre-training's length
        (0.9, 10, 0.1),  # never above the largest rate
        (0.01, 80, 0.1),  # a retraining longer than the pre-training
    ],
)
def test_the_adaptive_rate_lies_between_its_bounds(drop, steps, start):
    assert schedule("ALLR", norm_drop=drop, steps=steps).start == pytest.approx(start)


@given(kind=st.sampled_from(KINDS), steps=st.integers(1, 40), warm_up=st.floats(0, 0.9))
def test_rates_stay_between_zero_and_the_largest(kind, steps, warm_up):
    made = schedule(kind, steps=steps, warm_up=warm_up)
    found = [made.rate(step) for step in range(steps)]
    assert all(0 <= rate <= made.peak * (1 + 1e-12) for rate in found)
    assert [made.factor(step) * made.peak for step in range(steps)] == pytest.approx(found)
    warm = 0 if kind in ("FT", "LRW") else int(warm_up * steps)
    assert found[:warm] == sorted(found[:warm])
    assert found[warm:] == sorted(found[warm:], reverse=True)


def test_factors_drive_a_scheduler_of_torch():
    made = schedule("LLR")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=made.peak)
    last = made.steps - 1
    torch_schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: made.factor(min(step, last))
    )
    found = []
    for _ in range(made.steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torch_schedule.step()
    assert found == pytest.approx(rates("LLR"))


def test_the_norm_drop_of_pruning_is_the_share_that_went():
    before = [torch.tensor([3.0, 4.0, 0.0]), torch.tensor([12.0])]
    after = [torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0])]
    assert norm_drop(before, after) == pytest.approx(math.sqrt(160 / 169))
    assert norm_drop(before, before) == 0.0
    assert norm_drop([torch.zeros(2)], [torch.zeros(2)]) == 0.0


def test_a_growing_norm_counts_as_its_size():
    assert norm_drop([torch.ones(1)], [torch.tensor([2.0])]) == pytest.approx(math.sqrt(3))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"steps": 0}, "at least 1 step"),
        ({"history": ()}, "learning rate of every step"),
        ({"history": (0.1, -0.1)}, "none of them negative"),
        ({"history": (math.inf,)}, "none of them negative or infinite"),
        ({"warm_up": 1.0}, "in \\[0, 1\\)"),
        ({"kind": "LRW", "steps": 41}, "had only 40"),
        ({"kind": "ALLR", "norm_drop": None}, "share of the norm"),
        ({"kind": "ALLR", "pruned_fraction": 0.0}, "in \\(0, 1\\]"),
    ],
)
def test_settings_are_checked(changed, message):
    with pytest.raises(InvalidValue, match=message):
        schedule(**changed)


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(UnknownName, match="ALLR"):
        schedule("LLRR")


@pytest.mark.parametrize("step", [-1, 10])
def test_a_step_outside_is_refused(step):
    with pytest.raises(InvalidValue, match="steps 0 to 9"):
        schedule().rate(step)
