"""Reads the settings of a class from its docstrings, so that each is described in one place."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any, get_args, get_type_hints

_ENTRY = re.compile(r"(\w+): (.*)")


def argument_docs(cls: type) -> dict[str, str]:
    """Returns what the `Args:` sections of a class and its bases say, by argument.

    A class says more than its bases, so its own words win.

    Example:
        >>> from sparsecraft.core.patterns import NM
        >>> argument_docs(NM)["keep"]
        'How many stay in each group.'
    """
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        found.update(_arguments(inspect.cleandoc(each.__dict__.get("__doc__") or "")))
    return found


def body(cls: type) -> str:
    """Returns a docstring up to its first section (Args, Example, Reference, ...)."""
    text = inspect.getdoc(cls) or ""
    return re.split(r"\n+(?:Args|Returns|Raises|Example|Reference)s?:\n", text)[0].strip()


def reference(cls: type) -> str:
    """Returns the `Reference:` section of a docstring in one line, or nothing."""
    found = re.search(r"Reference:\n((?: {4}.*\n?)+)", (inspect.getdoc(cls) or "") + "\n")
    return " ".join(found[1].split()) if found else ""


def type_name(cls: type, field: str) -> str:
    """Returns the type of a dataclass field as a user writes it: "float", "pattern", ..."""
    from sparsecraft.core.catalog import MethodInfo

    # core.kinds names MethodInfo only for the type checker, to stay below the catalog.
    hint = get_type_hints(cls, localns={"MethodInfo": MethodInfo})[field]
    kinds = [kind for kind in get_args(hint) or (hint,) if kind not in (type(None), ...)]
    return " or ".join(_word(kind) for kind in kinds)


def default_text(field: dataclasses.Field[Any]) -> str:
    """Returns the default of a field as text, or nothing where it has none to show."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is None or value is dataclasses.MISSING:
        return ""
    if dataclasses.is_dataclass(value) and type(value).__str__ is object.__str__:
        return type(value).__name__.lower()
    return str(value)


def _word(kind: Any) -> str:
    if kind in (int, float, str, bool):
        return kind.__name__
    return repr(kind) if isinstance(kind, str) else getattr(kind, "__name__", str(kind)).lower()


def _arguments(doc: str) -> dict[str, str]:
    """Returns the entries of the `Args:` section; deeper lines continue the entry before."""
    section = re.search(r"^Args:\n((?:(?: {4}.*)?\n)+)", doc + "\n", re.MULTILINE)
    found: dict[str, str] = {}
    name = ""
    for line in section[1].splitlines() if section else ():
        entry = _ENTRY.match(line.strip())
        if entry and not line.startswith(" " * 5):
            name = entry[1]
            found[name] = entry[2]
        elif name and line.strip():
            found[name] += f" {line.strip()}"
    return found
