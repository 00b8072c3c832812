"""Precision, recall and F1 of latents, unions, and shares of the reconstruction."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue
from sparsecraft.domains.interpretability.feature_scores import (
    conjunction_f1,
    feature_f1,
    feature_weights,
    removed_weight,
    union_f1,
    value_masks,
)

CODES = torch.tensor([[1.0, 0.0, 0.0], [-2.0, 0.0, 0.0], [0.5, 3.0, 0.0], [0.0, 1.0, 0.0]])
VALUES = torch.tensor([0, 0, 1, 2])


def test_by_hand_and_of_either_sign():
    scores = feature_f1(CODES != 0, value_masks(VALUES, 3))
    assert scores.precision[0].tolist() == pytest.approx([2 / 3, 1 / 3, 0])
    assert scores.recall[0].tolist() == [1, 1, 0]
    assert scores.f1[0].tolist() == pytest.approx([0.8, 0.5, 0])


def test_a_latent_that_never_fires_has_no_precision_and_an_f1_of_zero():
    scores = feature_f1(CODES != 0, value_masks(VALUES, 3))
    assert bool(scores.precision[2].isnan().all())
    assert scores.f1[2].tolist() == [0, 0, 0]
    assert scores.share(0.7) == pytest.approx(1 / 3)
    latents, best = scores.best()
    assert latents.tolist() == [0, 1, 1] and best.tolist() == pytest.approx([0.8, 2 / 3, 2 / 3])


def test_unions():
    found = union_f1(CODES != 0, value_masks(VALUES, 3), max_group=3)
    # Latent 0 fires on values 0 and 1, latent 1 on values 1 and 2.
    assert found.f1.tolist() == pytest.approx([1, 1, 0])
    assert found.size.tolist()[:2] == [2, 2]
    assert found.by_size[0].tolist() == pytest.approx([0.8, 1.0, 6 / 7])


@given(st.integers(0, 1000))
def test_unions_are_not_worse_than_single_values(seed):
    draw = torch.Generator().manual_seed(seed)
    active = torch.rand(30, 6, generator=draw) < 0.3
    masks = value_masks(torch.arange(30) % 5, 5)
    found = union_f1(active, masks)
    assert bool((found.f1 >= feature_f1(active, masks).f1.max(1).values - 1e-12).all())


@given(st.integers(0, 1000))
def test_weights_of_a_row_sum_to_one(seed):
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(5, 7, generator=draw, dtype=torch.float64)
    d = torch.randn(7, 4, generator=draw, dtype=torch.float64)
    z[0] = 0
    weights = feature_weights(z, d)
    assert weights[0].tolist() == [0] * 7
    torch.testing.assert_close(weights[1:].sum(1), torch.ones(4, dtype=torch.float64))
    everything = torch.arange(7).expand(5, 7)
    torch.testing.assert_close(removed_weight(weights, everything), weights.sum(1))


@pytest.mark.parametrize(
    ("active", "masks", "text"),
    [
        (CODES, value_masks(VALUES, 3), "codes != 0"),
        (CODES != 0, value_masks(VALUES[:2], 3), "4 rows and masks 2"),
        (CODES != 0, value_masks(VALUES, 4), "property 3 is true in no row"),
    ],
)
def test_errors(active, masks, text):
    with pytest.raises(InvalidValue, match=text):
        feature_f1(active, masks)


ATTRIBUTES = {"a": torch.tensor([0, 0, 0, 1, 1, 1]), "b": torch.tensor([0, 0, 1, 0, 1, 1])}


def test_conjunctions_by_hand():
    active = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1], [0] * 6]).bool().T
    found = conjunction_f1(active, ATTRIBUTES, least=1)
    # Latent 0 fires on all of a = 0, of which two of three have b = 0; latent 1 on a = 1 and b = 1.
    assert found.f1.tolist() == pytest.approx([0.8, 1.0, 0.0])
    best = [found.conjunctions[place] for place in found.best.tolist()[:2]]
    assert best == [(("a", 0), ("b", 0)), (("a", 1), ("b", 1))]
    assert len(found.conjunctions) == 4 and found.left_out == 0


@given(st.integers(0, 1000))
def test_conjunctions_are_those_of_their_masks(seed):
    draw = torch.Generator().manual_seed(seed)
    active = torch.rand(40, 5, generator=draw) < 0.4
    index = {name: torch.randint(3, (40,), generator=draw) for name in "abc"}
    found = conjunction_f1(active, index, least=2)
    masks = torch.stack(
        [(index[a] == i) & (index[b] == j) for (a, i), (b, j) in found.conjunctions]
    )
    torch.testing.assert_close(found.f1, feature_f1(active, masks.T).f1.max(1).values)
    assert bool((masks.sum(1) >= 2).all())


def test_conjunctions_are_bounded_and_what_is_left_out_is_counted():
    active = torch.ones(6, 1).bool()
    two = conjunction_f1(active, ATTRIBUTES, most=1, least=2)
    assert two.conjunctions == ((("a", 0), ("b", 0)),) and two.left_out == 3
    none = conjunction_f1(active, ATTRIBUTES, least=5)
    assert (none.f1.tolist(), none.best.tolist(), none.left_out) == ([0.0], [-1], 4)


@pytest.mark.parametrize(
    ("index", "options", "text"),
    [
        ({"a": torch.zeros(6)}, {}, "at least two attributes"),
        (ATTRIBUTES, {"most": 0}, "most=0"),
        ({**ATTRIBUTES, "c": torch.zeros(5)}, {}, "'c' has 5 values for 6 rows"),
    ],
)
def test_conjunctions_that_cannot_be(index, options, text):
    with pytest.raises(InvalidValue, match=text):
        conjunction_f1(torch.ones(6, 1).bool(), index, **options)


def test_a_union_of_nothing():
    with pytest.raises(InvalidValue, match="max_group=0"):
        union_f1(CODES != 0, value_masks(VALUES, 3), 0)
