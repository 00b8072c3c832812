"""Bias adaptation: the rule by hand, counters equal to a buffer, groups and targets, errors."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.bias_adaptation import (
    BiasAdaptation,
    check_not_trained,
    geometric_targets,
    group_means,
    random_groups,
)
from sparsecraft.core.errors import InvalidValue

RULE = BiasAdaptation(targets=(0.5, 0.1), step_down=0.1, step_up=0.2, buffer=100, floor=0.01)


def test_the_three_cases_by_hand():
    bias = torch.tensor([-0.2, -0.2, -0.2, -0.2])
    frequency = torch.tensor([0.6, 0.5, 0.0, 0.05], dtype=torch.float64)
    largest, group = torch.tensor([0.4, 0.3, 0.0, 0.8]), torch.tensor([0, 0, 0, 1])
    # Too often: down by 0.1 * 0.4. At its target: as it is. Dead: up by 0.2 * mean(0.4, 0.3).
    found = RULE.moved(bias, frequency, largest, group)
    assert found.tolist() == pytest.approx([-0.24, -0.2, -0.13, -0.2])


def test_biases_stay_in_their_bounds():
    bias, group = torch.tensor([-0.99, -0.01]), torch.tensor([0, 0])
    frequency = torch.tensor([0.9, 0.0], dtype=torch.float64)
    found = RULE.moved(bias, frequency, torch.tensor([0.9, 0.0]), group)
    assert found.tolist() == [-1.0, 0.0]


def test_a_group_that_never_fired_does_not_move():
    bias = torch.full((2,), -0.5)
    frequency, largest = torch.zeros(2, dtype=torch.float64), torch.zeros(2)
    assert torch.equal(RULE.moved(bias, frequency, largest, torch.tensor([0, 1])), bias)


def test_means_leave_out_what_never_fired():
    means = group_means(torch.tensor([1.0, 0.0, 3.0, 0.0]), torch.tensor([0, 0, 0, 1]), 3)
    assert means.tolist() == [2.0, 0.0, 0.0]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(0, 2**31))
def test_counters_equal_a_buffer_of_stored_values(sizes, seed):
    draw = torch.Generator().manual_seed(seed)
    batches = [0.3 * torch.randn(size, 6, generator=draw) for size in sizes]
    rule = dataclasses.replace(RULE, buffer=max(100, sum(sizes)))
    state, bias = rule.initial(6, seed=0), torch.full((6,), -0.1)
    group = state["group"].clone()
    missing = rule.buffer - sum(sizes)
    batches += [torch.zeros(missing, 6)] if missing else []
    moved = [rule.update(bias, state, rule.observe(batch)) for batch in batches]
    stored = torch.cat(batches)
    wanted = rule.moved(
        torch.full((6,), -0.1),
        (stored > 0).double().mean(0),
        stored.amax(0).clamp_min(0),
        group,
    )
    assert moved == [False] * (len(batches) - 1) + [True]
    assert torch.equal(bias, wanted)


def test_frequencies_between_floor_and_target_are_a_fixed_point():
    bias = torch.tensor([-0.3, -0.4])
    frequency = torch.tensor([0.5, 0.01], dtype=torch.float64)
    assert torch.equal(RULE.moved(bias, frequency, torch.ones(2), torch.tensor([0, 1])), bias)


@given(st.permutations(range(8)))
def test_the_order_of_latents_does_not_matter(order):
    draw = torch.Generator().manual_seed(3)
    bias, largest = -torch.rand(8, generator=draw), torch.rand(8, generator=draw)
    frequency = torch.rand(8, generator=draw, dtype=torch.float64).round(decimals=1)
    group = torch.arange(8) % 2
    plain = RULE.moved(bias, frequency, largest, group)
    index = torch.tensor(order)
    turned = RULE.moved(bias[index], frequency[index], largest[index], group[index])
    torch.testing.assert_close(turned, plain[index])


def test_targets_are_geometric_and_one_group_takes_the_highest():
    assert geometric_targets(0.2, 0.002, 3) == pytest.approx((0.2, 0.02, 0.002))
    assert geometric_targets(0.2, 0.002, 1) == (0.2,)
    assert geometric_targets(0.2, 0.2, 2) == pytest.approx((0.2, 0.2))


@given(st.integers(1, 300), st.integers(1, 20), st.integers(0, 9))
def test_groups_divide_the_latents_into_equal_parts(latents, groups, seed):
    if latents < groups:
        with pytest.raises(InvalidValue, match="cannot fill"):
            random_groups(latents, groups, seed)
        return
    group = random_groups(latents, groups, seed)
    sizes = torch.bincount(group, minlength=groups)
    assert len(group) == latents
    assert len(sizes) == groups
    assert int(sizes.max() - sizes.min()) <= 1
    assert torch.equal(group, random_groups(latents, groups, seed))


def test_another_seed_divides_otherwise():
    assert not torch.equal(random_groups(64, 4, 0), random_groups(64, 4, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, 0.1, 2), "above 0 and below 1"),
        ((0.1, 0.0, 2), "above 0 and below 1"),
        ((0.1, 0.2, 2), "low=0.2 exceeds high=0.1"),
        ((0.1, 0.1, 0), "groups=0 is not allowed"),
        ((0.1, 0.1, True), "groups=True is not allowed"),
    ],
)
def test_targets_that_are_not_allowed(arguments, message):
    with pytest.raises(InvalidValue, match=message):
        geometric_targets(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"targets": ()}, "targets=\\(\\) are not allowed"),
        ({"targets": (0.1, 1.5)}, "give frequencies above 0 and below 1"),
        ({"step_down": -0.1}, "step_down=-0.1 is not allowed"),
        ({"step_up": float("nan")}, "step_up=nan is not allowed"),
        ({"floor": -1.0}, "floor=-1.0 is not allowed"),
        ({"lowest": 0.5}, "lowest=0.5 and highest=0.0 are not allowed"),
        ({"buffer": 99}, "buffer=99 rows are too few .* give at least 100"),
    ],
)
def test_settings_that_are_not_allowed(options, message):
    with pytest.raises(InvalidValue, match=message):
        dataclasses.replace(RULE, **options)


def test_a_bias_outside_its_bounds_is_refused_before_it_moves():
    state, bias = RULE.initial(2, seed=0), torch.tensor([-0.1, 0.4])
    with pytest.raises(InvalidValue, match=r"1 biases are outside \[-1.0, 0.0\], first latent 1"):
        RULE.update(bias, state, RULE.observe(torch.full((100, 2), 0.1)))
    assert bias.tolist() == pytest.approx([-0.1, 0.4])


def test_inputs_far_from_norm_one_are_refused():
    state, bias = RULE.initial(2, seed=0), torch.zeros(2)
    with pytest.raises(InvalidValue, match=r'row_norm="unit".* or set lowest to about -9'):
        RULE.update(bias, state, RULE.observe(torch.full((100, 2), 9.0)))
    wide = dataclasses.replace(RULE, lowest=-9.0)
    assert wide.update(bias, wide.initial(2, 0), wide.observe(torch.full((100, 2), 9.0)))


def test_a_bias_in_an_optimiser_is_refused():
    bias, weight = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    check_not_trained(bias, torch.optim.SGD([weight], lr=0.1))
    with pytest.raises(InvalidValue, match="leave it out of the optimiser"):
        check_not_trained(bias, torch.optim.SGD([weight, bias], lr=0.1))
