"""Recovery and consistency of dictionaries: by hand, in blocks, and their errors."""

import pytest
import torch

from sparsecraft.core import dictionary_similarity
from sparsecraft.core.dictionary_similarity import (
    feature_consistency,
    max_cosines,
    recovery_rate,
)
from sparsecraft.core.errors import InvalidValue, NonFinite


def drawn(rows, seed):
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))


def test_cosines_by_hand_and_their_signs():
    a = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    b = torch.tensor([[-5.0, 0.0], [3.0, 4.0]])
    assert max_cosines(a, b).tolist() == pytest.approx([0.6, 0.8])
    assert max_cosines(a, b, signed=False).tolist() == pytest.approx([1.0, 0.8])


def test_blocks_change_nothing(monkeypatch):
    a, b = drawn(30, 0), drawn(40, 1)
    whole = max_cosines(a, b)
    monkeypatch.setattr(dictionary_similarity, "BLOCK", 7)
    torch.testing.assert_close(max_cosines(a, b), whole)
    cosines = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=2)
    torch.testing.assert_close(whole, cosines.amax(1))


def test_recovery_does_not_depend_on_scale_order_or_surplus():
    features = drawn(10, 0)
    found = torch.cat([3 * features.flip(0)[:8], drawn(5, 1)])
    assert recovery_rate(found, features, above=0.99) == 0.8
    assert recovery_rate(-features, features, above=0.99) == 0.0
    assert recovery_rate(-features, features, above=0.99, signed=False) == 1.0


def test_consistency_over_all_ordered_pairs():
    one = torch.eye(4)
    half = torch.cat([torch.eye(4)[:2], torch.eye(4)[:2]])
    found = feature_consistency([one, half, one])
    # one finds all of itself and half of `half`; `half` is found wholly.
    assert found.pairs == 6
    assert found.share == pytest.approx((1 + 1 + 2 * 0.5 + 2 * 1) / 6)
    assert found.mean == pytest.approx(found.share)


def test_only_the_chosen_latents_are_asked_about():
    a, b = torch.eye(3), torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert feature_consistency([a, b]).share == pytest.approx((2 / 3 + 1) / 2)
    alive = [torch.tensor([True, True, False]), torch.tensor([0, 2])]
    assert feature_consistency([a, b], chosen=alive).share == 1.0


def test_a_zero_direction_is_like_nothing():
    assert max_cosines(torch.zeros(1, 2), torch.eye(2)).tolist() == [0.0]


def test_what_cannot_be_compared():
    with pytest.raises(InvalidValue, match="width 2 and 3"):
        max_cosines(torch.eye(2), torch.eye(3))
    with pytest.raises(InvalidValue, match="at least two runs"):
        feature_consistency([torch.eye(2)])
    with pytest.raises(InvalidValue, match="1 choices were given for 2"):
        feature_consistency([torch.eye(2)] * 2, chosen=[torch.tensor([0])])
    with pytest.raises(InvalidValue, match="give \\(n, d\\)"):
        max_cosines(torch.ones(2), torch.eye(2))
    with pytest.raises(NonFinite, match="leave those latents out"):
        max_cosines(torch.tensor([[float("nan"), 1.0]]), torch.eye(2))
