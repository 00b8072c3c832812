import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.lab.evidence.table import Row, Summary, markdown, paired, spearman, summarise

ROWS = [
    Row("wanda", 1, "loss", 2.5),
    Row("wanda", 0, "loss", 2.0),
    Row("dense", 0, "loss", 1.5),
    Row("dense", 1, "loss", 1.0),
    Row("dense", 0, "bytes", 100.0),
]


def test_paired_matches_seeds_in_order():
    seeds, differences = paired(ROWS, "loss", "wanda", "dense")
    assert seeds == [0, 1]
    assert differences.tolist() == [0.5, 1.5]


@given(st.permutations(ROWS))
def test_row_order_does_not_matter_and_swapped_arms_flip_the_sign(rows):
    seeds, differences = paired(rows, "loss", "wanda", "dense")
    swapped = paired(rows, "loss", "dense", "wanda")
    assert (seeds, differences.tolist()) == ([0, 1], [0.5, 1.5])
    assert (swapped[0], swapped[1].tolist()) == ([0, 1], [-0.5, -1.5])


@pytest.mark.parametrize(
    ("rows", "arms", "error", "says"),
    [
        (ROWS[:3], ("wanda", "dense"), InvalidValue, "arm 'dense' has no 'loss' for seed 1"),
        (ROWS[:3], ("dense", "wanda"), InvalidValue, "arm 'dense' has no 'loss' for seed 1"),
        ([*ROWS, ROWS[0]], ("wanda", "dense"), InvalidValue, "twice for seed 1"),
        (ROWS, ("wnada", "dense"), UnknownName, "Did you mean 'wanda'"),
        ([*ROWS, Row("odd", 0, "los", 1.0)], ("odd", "dense"), UnknownName, "metric of arm 'odd'"),
        ([], ("wanda", "dense"), UnknownName, "Known: none"),
    ],
)
def test_paired_names_what_is_missing(rows, arms, error, says):
    with pytest.raises(error, match=says):
        paired(rows, "loss", *arms)


def test_summarise_by_hand():
    wanda, dense, size = summarise(ROWS)
    assert wanda == Summary("wanda", "loss", 2.25, pytest.approx(math.sqrt(0.125)), 2)
    assert dense[:3] == ("dense", "loss", 1.25)
    assert (size.metric, size.mean, size.n) == ("bytes", 100.0, 1)
    assert math.isnan(size.sd)


def test_markdown_by_hand():
    assert markdown([*ROWS, Row("a|b", 0, "bytes", 12345.6)]) == (
        "| arm | loss | bytes |\n"
        "| --- | ---: | ---: |\n"
        "| wanda | 2.25 ± 0.35 (2) |  |\n"
        "| dense | 1.25 ± 0.35 (2) | 100 (1) |\n"
        "| a\\|b |  | 1.235e+04 (1) |"
    )


def test_spearman_by_hand():
    assert spearman([1, 2, 3, 4, 5], [5, 6, 7, 8, 7]) == pytest.approx(0.8207827)
    assert spearman([1, 2, 3], [3, 2, 1]) == -1.0
    assert spearman([1, 1, 2], [1, 2, 2]) == pytest.approx(0.5)


@given(
    st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=20).filter(
        lambda rows: all(len(set(side)) > 1 for side in zip(*rows, strict=True))
    )
)
def test_spearman_laws(rows):
    x, y = np.array(rows, dtype=float).T
    rho = spearman(x, y)
    assert -1 - 1e-12 <= rho <= 1 + 1e-12
    assert spearman(y, x) == pytest.approx(rho)
    assert spearman(np.exp(x), y) == pytest.approx(rho)  # only the order matters
    assert spearman(-x, y) == pytest.approx(-rho)
    assert spearman(x, x) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("x", "y", "says"),
    [
        ([1, 2], [1, 2, 3], "same length"),
        ([1], [1], "at least 2"),
        ([1, 2], [3, 3], "all values of y are equal"),
        ([1, math.nan], [1, 2], "x has a value"),
    ],
)
def test_spearman_refuses(x, y, says):
    with pytest.raises(InvalidValue, match=says):
        spearman(x, y)
