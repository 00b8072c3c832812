import dataclasses
import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.evidence.paired import OVER_EXAMPLES, OVER_SEEDS, Interval, paired_t
from sparsecraft.lab.evidence.verdict import StatedDifference, combine, judge

ORDER = {"does not hold": 0, "inconclusive": 1, "holds": 2}
LESS = StatedDifference(text="lower perplexity", unit="perplexity", direction="less")
GREATER = StatedDifference(text="more accurate", unit="accuracy", direction="greater")


def interval(low, high, n=5, method=OVER_SEEDS):
    return Interval((low + high) / 2, low, high, 0.95, n, method)


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (1.1, 2.0, "holds"),
        (1.0, 2.0, "inconclusive"),  # touches the smallest effect of interest
        (0.1, 0.9, "inconclusive"),  # the right way, but too small to matter
        (-0.5, 3.0, "inconclusive"),
        (-2.0, 0.0, "inconclusive"),  # touches zero
        (-2.0, -0.1, "does not hold"),
        (0.0, 0.0, "inconclusive"),  # both arms equal
        (-math.inf, math.inf, "inconclusive"),
    ],
)
def test_the_three_words(low, high, word):
    stated = dataclasses.replace(GREATER, smallest_effect=1.0)
    mirrored = dataclasses.replace(LESS, smallest_effect=1.0)
    measured = Interval(0.0 if math.isinf(low) else low, low, high, 0.95, 5, OVER_SEEDS)
    reflected = Interval(-measured.estimate, -high, -low, 0.95, 5, OVER_SEEDS)
    assert judge(measured, stated).word == word
    assert judge(reflected, mirrored).word == word


@given(st.floats(-10, 10), st.floats(0, 5), st.floats(0, 5), st.floats(0, 3), st.floats(0, 3))
def test_judge_is_monotone(low, width, shift, effect, stricter):
    def word(low, effect):
        stated = dataclasses.replace(GREATER, smallest_effect=effect)
        return ORDER[judge(interval(low, low + width), stated).word]

    assert word(low + shift, effect) >= word(low, effect)
    assert word(low, effect + stricter) <= word(low, effect)


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8))
def test_relabelling_the_arms_turns_holds_into_does_not_hold(differences):
    word = judge(paired_t(differences), GREATER).word
    swapped = judge(paired_t([-d for d in differences]), GREATER).word
    assert ORDER[swapped] == 2 - ORDER[word]
    assert judge(paired_t([-d for d in differences]), LESS).word == word


SYMMETRIC_NULLS = {
    "normal": lambda rng, n: rng.normal(size=n),
    "uniform": lambda rng, n: rng.uniform(-1, 1, size=n),
    "laplace": lambda rng, n: rng.laplace(size=n),
    "heavy": lambda rng, n: rng.standard_t(3, size=n),
    "signs": lambda rng, n: rng.choice([-1.0, 1.0], size=n),
}


@pytest.mark.parametrize("seeds", [5, 8])
@pytest.mark.parametrize("null", SYMMETRIC_NULLS)
def test_swapped_labels_hold_in_at_most_one_pattern_in_twenty_of_every_draw(null, seeds):
    rng = np.random.default_rng(0)
    signs = np.array(list(itertools.product([-1.0, 1.0], repeat=seeds)))
    found = 0
    for _ in range(2**14 // 2**seeds // 4):
        magnitudes = SYMMETRIC_NULLS[null](rng, seeds)
        words = [judge(paired_t(pattern * magnitudes), GREATER).word for pattern in signs]
        assert words.count("holds") <= 0.05 * len(words)
        assert words.count("holds") == words.count("does not hold")
        found += words.count("holds")
    assert found


@pytest.mark.parametrize("seeds", [5, 8])
def test_a_planted_effect_is_found(seeds):
    draws = np.random.default_rng(1).normal(loc=3.0, size=(1000, seeds))
    words = [judge(paired_t(draw), GREATER).word for draw in draws]
    assert words.count("holds") >= 900
    assert "does not hold" not in words


def test_smallest_detectable_is_the_half_width_beyond_the_effect_of_interest():
    stated = dataclasses.replace(LESS, smallest_effect=0.5)
    assert judge(interval(-1.0, 2.0), stated).smallest_detectable == pytest.approx(2.0)


def test_lines():
    line = judge(interval(0.4, 2.0), LESS).line(28, "0.8M parameters")
    assert line == (
        "28 at 0.8M parameters: does not hold (perplexity +1.2 [0.4, 2.0], needed < 0, 5 seeds)"
    )
    stated = dataclasses.replace(GREATER, smallest_effect=0.01)
    line = judge(interval(0.0, 0.06, n=400, method=OVER_EXAMPLES), stated).line(13, "0.8M")
    assert line == (
        "13 at 0.8M: inconclusive (accuracy +0.030 [0.000, 0.060], needed > 0.01, 400 examples, "
        "could have seen 0.040)"
    )
    stated = dataclasses.replace(LESS, smallest_effect=0.5)
    line = judge(Interval(-2.0, -math.inf, math.inf, 0.95, 1, OVER_SEEDS), stated).line(8, "1M")
    assert line == (
        "8 at 1M: inconclusive (perplexity -2.00 [-inf, inf], needed < -0.5, 1 seed, "
        "could have seen inf)"
    )


@given(st.integers(-5000, 5000).map(lambda i: i / 1000), st.floats(1e-3, 50), st.floats(0, 1))
def test_printed_ends_do_not_belie_the_verdict(low, width, effect):
    stated = dataclasses.replace(GREATER, smallest_effect=round(effect, 3))
    verdict = judge(interval(low, low + width), stated)
    low_end, high_end = verdict.summary().split("[")[1].split("]")[0].split(", ")
    assert judge(interval(float(low_end), float(high_end)), stated).word == verdict.word


def test_json_is_strict_and_complete():
    verdict = judge(paired_t([0.5]), LESS)
    record = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    assert record["word"] == "inconclusive"
    assert record["low"] is None
    assert record["smallest_detectable"] is None
    assert (record["estimate"], record["n"], record["method"]) == (0.5, 1, OVER_SEEDS)
    both = combine([verdict, judge(interval(0.4, 2.0), LESS)]).to_json()
    assert both["word"] == "does not hold"
    assert [part["word"] for part in both["parts"]] == ["inconclusive", "does not hold"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("holds", "holds"), "holds"),
        (("holds", "inconclusive"), "inconclusive"),
        (("holds", "inconclusive", "does not hold"), "does not hold"),
        (("holds",), "holds"),
    ],
)
def test_combine(words, expected):
    ends = {"holds": (1.0, 2.0), "inconclusive": (-1.0, 1.0), "does not hold": (-2.0, -1.0)}
    combined = combine([judge(interval(*ends[word]), GREATER) for word in words])
    assert combined.word == expected
    assert combined.line(3, "1M").startswith(f"3 at 1M: {expected} (accuracy ")
    assert combined.line(3, "1M").count(";") == len(words) - 1


def test_bad_statements_are_refused():
    with pytest.raises(InvalidValue, match="'greater' and 'less'"):
        StatedDifference(text="", unit="x", direction="up")
    for effect in (-0.1, math.inf, math.nan):
        with pytest.raises(InvalidValue, match="smallest_effect"):
            StatedDifference(text="", unit="x", direction="less", smallest_effect=effect)
    with pytest.raises(InvalidValue, match="no verdicts"):
        combine([])
