"""Silence is counted in tokens; a bias is a centre; ranks say how they join statistics."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.code import Code
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.seeds import generator
from sparsecraft.model.ranks import join_statistics, reduce_over_ranks_
from sparsecraft.model.sae.bias import geometric_median
from sparsecraft.model.sae.counters import FiringCounter


def test_silence_is_counted_in_tokens_and_negative_entries_fire():
    counter = FiringCounter(3)
    counter.add(torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -2.0]]))
    assert counter.silent.tolist() == [0, 2, 0]
    counter.add(Code.of(torch.tensor([[0.0, 0.0, 3.0]] * 5)))
    assert counter.silent.tolist() == [5, 7, 0]
    assert counter.fired.tolist() == [1, 0, 6]
    assert counter.dead(5).tolist() == [True, True, False]
    assert counter.dead(6).tolist() == [False, True, False]
    counter.reset(torch.tensor([1]))
    assert counter.silent.tolist() == [5, 0, 0]


def test_an_entry_that_was_selected_with_the_value_zero_does_not_fire():
    counter = FiringCounter(2)
    selected = Code(torch.tensor([0, 1]), torch.tensor([1]), torch.tensor([0.0]), 2)
    counter.add(selected)
    assert counter.silent.tolist() == [1, 1]


def test_the_running_density_starts_with_the_first_batch():
    counter = FiringCounter(2, density_momentum=0.5)
    assert torch.isnan(counter.density).all()
    counter.add(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    assert counter.density.tolist() == [1.0, 0.5]
    counter.add(torch.tensor([[0.0, 1.0]]))
    assert counter.density.tolist() == [0.5, 0.75]


def test_the_running_density_of_what_fell_silent_is_zero_and_of_what_is_rare_is_not():
    counter = FiringCounter(3, density_momentum=0.75)  # a mean over four batches
    first = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    counter.add(first)
    for number in range(1, 4):
        counter.add(torch.tensor([[1.0, 0.0, float(number == 3)], [1.0, 0.0, 0.0]]))
        assert counter.density[1].item() == pytest.approx(0.5 * 0.75**number)
    counter.add(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
    assert counter.density[:2].tolist() == [1.0, 0.0]
    assert counter.density[2].item() == pytest.approx((0.5 * 0.75**3 + 0.125) * 0.75)
    counter.add(first)
    assert counter.density[1].item() == pytest.approx(0.125), "a mean again, from zero"


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_counts_are_saved_and_taken_up(momentum):
    one, other = (FiringCounter(4, density_momentum=momentum) for _ in range(2))
    one.add(torch.eye(4)[:2])
    saved = one.state_dict()
    one.add(torch.eye(4)[2:])
    other.load_state_dict(saved)
    other.add(torch.eye(4)[2:])
    assert all(
        torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items()
    )


@given(st.integers(0, 10**6))
def test_no_point_near_the_geometric_median_is_nearer_to_all_rows(seed):
    draw = generator(seed, "rows")
    rows = torch.randn(15, 3, generator=draw) * torch.rand(15, 1, generator=draw) * 10
    median = geometric_median(rows)
    least = (rows - median).norm(dim=1).sum()
    for _ in range(5):
        other = median + 0.05 * torch.randn(3, generator=draw)
        assert (rows - other).norm(dim=1).sum() >= least - 1e-4


def test_an_outlier_moves_the_mean_and_not_the_median():
    rows = torch.zeros(9, 2)
    rows[0] = 1e6
    torch.testing.assert_close(geometric_median(rows), torch.zeros(2), atol=1e-2, rtol=0)


def test_a_statistic_says_how_ranks_join_it():
    statistics = {"count": torch.tensor([2.0])}
    reduce_over_ranks_(statistics, {"count": "sum"})
    assert statistics["count"].tolist() == [2.0]
    with pytest.raises(InvalidValue, match=r"'count' must say how ranks join it: sum, max or min"):
        reduce_over_ranks_(statistics, {})
    with pytest.raises(InvalidValue, match="'count' must say how ranks join it"):
        join_statistics(statistics, statistics, {})


@pytest.mark.parametrize(("how", "expected"), [("sum", 5.0), ("max", 3.0), ("min", 2.0)])
def test_parts_of_a_batch_are_joined_as_ranks_are(how, expected):
    one, other = {"count": torch.tensor([2.0])}, {"count": torch.tensor([3.0])}
    assert join_statistics(one, other, {"count": how})["count"].tolist() == [expected]
    assert one["count"].tolist() == [2.0]
