"""Node space: exact counts, uniform draws, repair, weight densities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import BudgetError, InvalidValue, UnknownName
from sparsecraft.core.mask import count
from sparsecraft.core.node_space import NodeSpace, weight_density


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4),
    st.floats(0, 0.99),
    st.integers(0, 5),
)
def test_per_layer_counts_are_exact(widths, sparsity, trial):
    space = NodeSpace(widths={f"l{i}": n for i, n in enumerate(widths)}, sparsity=sparsity)
    configuration = space.sample(3, trial)
    for (name, keep), width in zip(configuration.items(), widths, strict=True):
        assert keep.dtype == torch.bool and keep.shape == (width,)
        assert int(keep.sum()) == max(1, count(width, 1 - sparsity)), name
    assert sum(int(keep.sum()) for keep in configuration.values()) == space.kept


@given(st.lists(st.integers(2, 30), min_size=2, max_size=4), st.floats(0, 0.9), st.integers(0, 9))
def test_global_counts_are_exact_and_no_layer_is_empty(widths, sparsity, trial):
    named = {f"l{i}": n for i, n in enumerate(widths)}
    kept = count(sum(widths), 1 - sparsity)
    if kept < len(widths):
        with pytest.raises(BudgetError, match="lower sparsity"):
            NodeSpace(widths=named, sparsity=sparsity, mode="global")
        return
    configuration = NodeSpace(widths=named, sparsity=sparsity, mode="global").sample(0, trial)
    assert [len(keep) for keep in configuration.values()] == widths
    assert all(keep.any() for keep in configuration.values())
    assert sum(int(keep.sum()) for keep in configuration.values()) == kept


def test_repair_takes_from_layers_that_can_spare():
    space = NodeSpace(widths={"small": 1, "large": 99}, sparsity=0.9, mode="global")
    for trial in range(30):
        keep = space.sample(1, trial)
        assert (int(keep["small"].sum()), int(keep["large"].sum())) == (1, 9)


@pytest.mark.parametrize("mode", ["per_layer", "global"])
def test_every_node_stays_equally_often(mode):
    space = NodeSpace(widths={"a": 12, "b": 20}, sparsity=0.75, mode=mode)
    trials = 3000
    for name, width in space.widths.items():
        stays = sum(space.sample(0, trial)[name].double() for trial in range(trials)) / trials
        # Four standard errors of a binomial with p = 1/4, over 32 nodes.
        assert stays.shape == (width,)
        assert (stays - 0.25).abs().max() < 4 * (0.25 * 0.75 / trials) ** 0.5


def test_a_trial_depends_on_seed_and_number_alone():
    space = NodeSpace(widths={"a": 30, "b": 30}, sparsity=0.5)
    wider = NodeSpace(widths={"z": 5, "a": 30, "b": 30}, sparsity=0.5)
    one = space.sample(4, 150)
    assert all(torch.equal(one[name], space.sample(4, 150)[name]) for name in "ab")
    assert torch.equal(one["a"], wider.sample(4, 150)["a"])
    assert not torch.equal(one["a"], one["b"])
    assert not torch.equal(one["a"], space.sample(4, 151)["a"])
    assert not torch.equal(one["a"], space.sample(5, 150)["a"])


def test_weight_density_is_the_product_between_hidden_layers():
    assert weight_density([1, 50, 50, 1], [1, 5, 5, 1]) == (5 + 25 + 5) / (50 + 2500 + 50)
    assert weight_density([3, 4], [3, 4]) == 1.0


def test_errors():
    with pytest.raises(InvalidValue, match=r"For 80 % write 0\.8"):
        NodeSpace(widths={"a": 3}, sparsity=80)
    with pytest.raises(UnknownName, match="per_layer"):
        NodeSpace(widths={"a": 3}, sparsity=0.5, mode="per-layer")
    with pytest.raises(InvalidValue, match="empty"):
        NodeSpace(widths={}, sparsity=0.5)
    with pytest.raises(InvalidValue, match="min_keep=0"):
        NodeSpace(widths={"a": 3}, sparsity=0.5, min_keep=0)
    with pytest.raises(InvalidValue, match="fewer than min_keep"):
        NodeSpace(widths={"a": 3}, sparsity=0.5, min_keep=4)
    with pytest.raises(InvalidValue, match="2 entries and kept 1"):
        weight_density([3, 4], [3])
    with pytest.raises(InvalidValue, match="not between"):
        weight_density([3, 4], [3, 5])
