"""The area under the curve against the count of all pairs, ties shared."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.lab.measures import out_of_distribution_auc, roc_auc

scores = st.lists(st.integers(-4, 4), min_size=1, max_size=15)


@given(scores, scores)
def test_it_is_the_share_of_pairs_in_the_right_order(high, low):
    wins = sum((a > b) + 0.5 * (a == b) for a in high for b in low) / (len(high) * len(low))
    found = roc_auc(torch.tensor(high, dtype=torch.float64), torch.tensor(low).double())
    assert found == pytest.approx(wins)


@given(scores, scores)
def test_swapped_labels_give_the_complement(high, low):
    one, two = (torch.tensor(each, dtype=torch.float64) for each in (high, low))
    assert roc_auc(one, two) + roc_auc(two, one) == pytest.approx(1)


def test_known_data_are_those_with_the_larger_probability():
    inside = torch.tensor([[5.0, 0.0], [0.0, 4.0]])
    outside = torch.tensor([[1.0, 1.0], [0.5, 0.0], [9.0, 0.0]])
    assert out_of_distribution_auc(inside, outside) == pytest.approx(4 / 6)
    # A shift of all logits changes no probability.
    assert out_of_distribution_auc(inside + 50, outside) == pytest.approx(4 / 6)


def test_errors():
    with pytest.raises(InvalidValue, match="0 positives and 1 negatives"):
        roc_auc(torch.zeros(0), torch.zeros(1))
    with pytest.raises(NonFinite, match="NaN"):
        roc_auc(torch.tensor([float("nan")]), torch.zeros(1))
