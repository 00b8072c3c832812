"""Values as people write them."""

from __future__ import annotations

import argparse

import pytest

from sparsecraft.cli.parser import (
    Parser,
    assignment,
    flattened,
    fraction,
    fractions,
    names,
    patterns,
    positive,
)
from sparsecraft.core.errors import InvalidValue


@pytest.mark.parametrize(
    ("text", "value"), [("3%", 0.03), ("0.03", 0.03), ("0", 0.0), ("60 %", 0.6)]
)
def test_fraction(text, value):
    assert fraction(text) == pytest.approx(value)


def test_lists():
    assert fractions("30%,0.5") == pytest.approx((0.3, 0.5))
    assert names("a, b,") == ("a", "b")
    assert patterns("*.mlp.*,!*.0.*") == ("*.mlp.*", "!*.0.*")
    assert patterns("re:a{1,2}") == ("re:a{1,2}",)
    assert patterns("!re:a{1,2}") == ("!re:a{1,2}",)
    assert flattened([("a", "b"), ("c",)]) == ["a", "b", "c"]
    assert flattened(None) is None


def test_assignment():
    assert assignment("allocation=erk") == ("allocation", "erk")
    assert assignment("a=b=c") == ("a", "b=c")


@pytest.mark.parametrize(
    ("read", "text"),
    [(fraction, "x%"), (names, ","), (assignment, "sparsity"), (positive, "0"), (positive, "1.5")],
)
def test_unreadable_values(read, text):
    with pytest.raises(argparse.ArgumentTypeError):
        read(text)


def test_errors_are_the_librarys():
    parser = Parser(prog="it")
    parser.add_argument("--seeds", type=positive)
    with pytest.raises(InvalidValue, match=r"--seeds: 0 is not allowed.*See `it --help`"):
        parser.parse_args(["--seeds", "0"])
    with pytest.raises(InvalidValue, match=r"unknown '--seed'\. Did you mean --seeds\?"):
        parser.parse_args(["--seed", "1"])
