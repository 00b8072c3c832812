"""Options made from a frozen settings class: names, types, defaults and help stand there once."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sparsecraft.cli.docstrings import argument_docs
from sparsecraft.cli.parser import flattened, fraction, fractions, names, patterns


def add_settings(
    parser: argparse.ArgumentParser, settings: type, *, options: Mapping[str, str], positional: str
) -> None:
    """Adds one option for every field of a settings class; nothing is set that was not given.

    Args:
        parser: Where the options go.
        settings: A dataclass whose docstring describes its fields.
        options: Field name to option name, where they differ ("methods" to "method").
        positional: The field that is given without an option.
    """
    hints, docs = get_type_hints(settings), argument_docs(settings)
    for field in dataclasses.fields(settings):
        help_text = docs[field.name].replace("%", "%%") + _default(field)
        if field.name == positional:
            parser.add_argument(field.name, nargs="?", metavar=field.name.upper(), help=help_text)
            continue
        option = options.get(field.name, field.name).replace("_", "-")
        how = _how(field, hints[field.name])
        flag = f"--no-{option}" if field.default is True else f"--{option}"
        parser.add_argument(flag, dest=field.name, default=argparse.SUPPRESS, help=help_text, **how)


def build(settings: type, arguments: argparse.Namespace) -> Any:
    """Returns the settings that the arguments give, defaults where they give none."""
    given = vars(arguments)
    values = {}
    for field in dataclasses.fields(settings):
        if given.get(field.name) is not None:
            value = given[field.name]
            values[field.name] = flattened(value) if isinstance(value, list) else value
    return settings(**values)


def _how(field: dataclasses.Field[Any], hint: Any) -> dict[str, Any]:
    """Returns how argparse reads a field of this type."""
    if hint is bool:
        return {"action": "store_false" if field.default is True else "store_true"}
    kinds = [kind for kind in _members(hint) if kind is not type(None)]
    if get_origin(kinds[0]) is tuple:
        return {"type": _list_reader(field.name, kinds[0]), "action": "append", "metavar": "A,B"}
    if get_origin(kinds[0]) is Literal:
        return {"metavar": "|".join(map(str, get_args(kinds[0])))}
    readers: dict[Any, Callable[[str], Any]] = {float: fraction, int: _whole}
    words = {float: "X", int: "N", str: "VALUE"}
    return {"type": readers.get(kinds[0], str), "metavar": words.get(kinds[0], "PATH")}


def _list_reader(name: str, kind: Any) -> Callable[[str], tuple[Any, ...]]:
    if get_args(kind)[0] is float:
        return fractions
    return patterns if name == "targets" else names


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default
    if value is None or isinstance(value, bool):
        return ""
    shown = ",".join(map(str, value)) if isinstance(value, tuple) else value
    return f" (default: {shown})"
