"""Settings are described in one place: the docstring."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from sparsecraft.cli.docstrings import argument_docs, body, default_text, reference, type_name
from sparsecraft.core.catalog import get
from sparsecraft.core.patterns import Pattern


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base.

    Args:
        first: Of the base.
        second: Of the base.
    """

    first: float = 0.5
    second: str | None = None


@dataclass(frozen=True, kw_only=True)
class Derived(Base):
    """Does something
    on two lines.

    More about it.

    Args:
        second: In its own words,
            on two lines: with a colon.
        third: Last.

    Reference:
        Somebody, 2020,
        eq. 1.
    """

    third: tuple[int, ...] = field(default_factory=lambda: (1, 2))


def test_argument_docs_of_a_class_win_over_its_bases():
    assert argument_docs(Derived) == {
        "first": "Of the base.",
        "second": "In its own words, on two lines: with a colon.",
        "third": "Last.",
    }


def test_body_and_reference():
    assert body(Derived) == "Does something\non two lines.\n\nMore about it."
    assert reference(Derived) == "Somebody, 2020, eq. 1."
    assert reference(Base) == ""


def test_types_and_defaults_as_a_user_writes_them():
    wanda = get("wanda")
    assert type_name(wanda.cls, "pattern") == Pattern.__name__.lower()
    assert default_text(wanda.options["pattern"]) == "row"
    assert default_text(wanda.options["allocation"]) == "uniform"
    assert default_text(wanda.options["sparsity"]) == ""
    fields = {each.name: each for each in dataclasses.fields(Derived)}
    assert default_text(fields["first"]) == "0.5"
    assert default_text(fields["third"]) == "(1, 2)"
