import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.core.mask import count
from sparsecraft.core.thresholds import (
    cats_threshold,
    exact_threshold,
    teal_threshold,
    wina_threshold,
)


def normal(number: int = 100_000) -> torch.Tensor:
    return torch.randn(number, generator=torch.Generator().manual_seed(0))


@given(st.lists(st.floats(0, 100, width=32), min_size=1, max_size=50), st.floats(0, 0.99))
def test_exactly_the_asked_number_exceeds_the_exact_threshold(values, sparsity):
    scores = torch.tensor(values)
    threshold = exact_threshold(scores, sparsity)
    kept = count(len(values), 1 - sparsity)
    above = int((scores > threshold).sum())
    ties = int((scores == threshold).sum())
    assert above <= kept <= above + ties


def test_exact_threshold_by_hand():
    scores = torch.tensor([[5.0, 1.0], [3.0, 2.0]])
    assert exact_threshold(scores, 0.0) == 0.0
    assert exact_threshold(scores, 0.25) == 1.0
    assert exact_threshold(scores, 0.75) == 3.0


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.65, 0.9])
def test_papers_thresholds_come_close_on_symmetric_values(sparsity):
    values = normal()
    exact = exact_threshold(values.abs(), sparsity)
    assert teal_threshold(values, sparsity) == pytest.approx(exact, abs=0.01)
    assert wina_threshold(values.abs(), sparsity) == pytest.approx(exact, abs=0.01)


def test_teals_threshold_is_wrong_where_values_are_not_symmetric():
    values = normal() + 3
    assert abs(teal_threshold(values, 0.5) - exact_threshold(values.abs(), 0.5)) > 0.5


def test_winas_threshold_interpolates_between_distinct_scores():
    scores = torch.tensor([1.0, 2.0, 2.0, 4.0])
    assert wina_threshold(scores, 0.0) == 1.0
    assert wina_threshold(scores, 0.25) == 1.0
    assert wina_threshold(scores, 0.5) == 1.5
    assert wina_threshold(scores, 0.875) == 3.0


def test_cats_threshold_is_an_edge_and_saturates_at_one():
    values = normal()
    edges = torch.linspace(-1, 1, 1000)
    found = cats_threshold(values, 0.5)
    assert float((edges - found).abs().min()) < 1e-6
    exact = exact_threshold(values.abs(), 0.5)
    assert found <= exact < found + 2 / 999 + 1e-6
    assert cats_threshold(values, 0.9) == 1.0
    assert exact_threshold(values.abs(), 0.9) > 1.6


@pytest.mark.parametrize(
    "threshold", [exact_threshold, teal_threshold, wina_threshold, cats_threshold]
)
def test_what_is_not_allowed(threshold):
    with pytest.raises(InvalidValue, match="no values"):
        threshold(torch.empty(0), 0.5)
    with pytest.raises(NonFinite, match="NaN or infinite"):
        threshold(torch.tensor([1.0, float("nan")]), 0.5)
    with pytest.raises(InvalidValue, match=r"in \[0, 1\)"):
        threshold(torch.ones(3), 1.0)
