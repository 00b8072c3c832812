"""How many entries a token keeps, and every refusal."""

import pytest

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.topk import check_topk, kept_of


def test_a_fraction_is_rounded_half_up_and_keeps_at_least_one():
    assert [kept_of(10, None, f) for f in (0.25, 0.24, 0.01, 1.0)] == [3, 2, 1, 10]
    assert kept_of(3072, None, 1 / 24) == 128
    assert kept_of(10, 10, None) == 10


@pytest.mark.parametrize("k", [0, -3, 2.5, 2.0, True, "4"])
def test_a_k_that_is_no_number_of_entries_is_refused(k):
    with pytest.raises(InvalidValue, match="a whole number of at least 1"):
        check_topk(k, None)


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5, float("nan")])
def test_a_fraction_that_is_no_share_is_refused(fraction):
    with pytest.raises(InvalidValue, match=r"in \(0, 1\]"):
        check_topk(None, fraction)


def test_one_of_both_must_be_given():
    with pytest.raises(InvalidValue, match=r"both k=4 and fraction=0\.5"):
        check_topk(4, 0.5)
    with pytest.raises(InvalidValue, match="neither k nor fraction"):
        check_topk(None, None)


def test_k_beyond_the_entries_is_refused():
    with pytest.raises(InvalidValue, match=r"k=65 exceeds the 64 entries .* of mlp"):
        kept_of(64, 65, None, "mlp")
