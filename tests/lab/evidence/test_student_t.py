import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.evidence.student_t import t_quantile

# Table of the 0.975 quantile, as printed in statistics textbooks.
TABLE = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 10: 2.228, 30: 2.042, 120: 1.980}


@pytest.mark.parametrize(("df", "expected"), TABLE.items())
def test_quantiles_match_the_printed_table(df, expected):
    assert t_quantile(0.975, df) == pytest.approx(expected, abs=5e-4)


def test_one_and_two_degrees_of_freedom_match_their_closed_forms():
    assert t_quantile(0.75, 1) == pytest.approx(1.0)  # tan(pi / 4)
    p = 0.9
    assert t_quantile(p, 2) == pytest.approx((2 * p - 1) / (2 * p * (1 - p)) ** 0.5)


def test_many_degrees_of_freedom_approach_the_normal_quantile():
    assert t_quantile(0.975, 100_000) == pytest.approx(1.95996, abs=1e-4)


@given(st.floats(0.001, 0.999), st.integers(1, 200))
def test_symmetric_and_increasing(probability, df):
    assert t_quantile(probability, df) == pytest.approx(-t_quantile(1 - probability, df), abs=1e-9)
    assert t_quantile(probability, df) < t_quantile(probability + 0.0005, df)


@pytest.mark.parametrize(("probability", "df"), [(0.0, 3), (1.0, 3), (0.9, 0), (0.9, 2.5)])
def test_out_of_range_is_refused(probability, df):
    with pytest.raises(InvalidValue):
        t_quantile(probability, df)
