"""How the verbs read their arguments: one parser class, one set of value types."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from sparsecraft.core.errors import InvalidValue, closest


class _Formatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the examples as written and shows the defaults that say something."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=100)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        # "(default: None)" and "(default: False)" teach nothing.
        if action.default is None or action.default is False or action.default == []:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are the library's: one line, with the closest option."""

    def __init__(self, prog: str, description: str = "", usage: str | None = None) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            formatter_class=_Formatter,
            allow_abbrev=False,
            exit_on_error=False,
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Returns the arguments.

        Raises:
            InvalidValue: For an option that does not exist or a value that cannot be read.
        """
        try:
            found, unknown = self.parse_known_args(args, namespace)
        except argparse.ArgumentError as error:
            self.error(str(error))
        if unknown:
            self.error(f"unknown {unknown[0]!r}.{self._hint(unknown[0])}")
        return found

    def error(self, message: str) -> NoReturn:
        """Raises InvalidValue with this message and where help is."""
        stop = "" if message.endswith((".", "?")) else "."
        raise InvalidValue(f"{message}{stop} See `{self.prog} --help`.")

    def _hint(self, given: str) -> str:
        known = [option for action in self._actions for option in action.option_strings]
        near = closest(given.split("=")[0], known)
        return f" Did you mean {' or '.join(near)}?" if near else ""


def fraction(text: str) -> float:
    """Returns 0.03 for "3%" and for "0.03".

    Example:
        >>> fraction("3%"), fraction("0.03")
        (0.03, 0.03)
    """
    number = text.strip()
    try:
        return float(number[:-1]) / 100 if number.endswith("%") else float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction: write 0.03 or 3%") from None


def fractions(text: str) -> tuple[float, ...]:
    """Returns the fractions of a comma list, "0.3,0.5" or "30%,50%"."""
    return tuple(fraction(part) for part in names(text))


def names(text: str) -> tuple[str, ...]:
    """Returns the members of a comma list without spaces around them."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    return found


def patterns(text: str) -> tuple[str, ...]:
    """Returns the target patterns of a comma list; a regular expression is taken whole."""
    return (text,) if text.removeprefix("!").startswith("re:") else names(text)


def assignment(text: str) -> tuple[str, str]:
    """Returns ("key", "value") of "key=value"."""
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form key=value")
    return key.strip(), value.strip()


def positive(text: str) -> int:
    """Returns a whole number of at least one."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not allowed: give at least 1")
    return number


def whole_numbers(text: str) -> tuple[int, ...]:
    """Returns the whole numbers of a comma list.

    Example:
        >>> whole_numbers("5, 77")
        (5, 77)
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers") from None


def flattened(groups: Sequence[Sequence[str]] | None) -> list[str] | None:
    """Returns the members of all groups in order, or None for none: "--method a,b --method c"."""
    return [name for group in groups for name in group] if groups else None


def add_method(parser: Parser, default: str | None, *, pattern: bool = True) -> None:
    """Adds the options that choose a method, its settings and its targets.

    Args:
        parser: Where they go.
        default: The method where none is named; None where one must be.
        pattern: Whether the methods know patterns of zeros, such as 2:4.
    """
    parser.add_argument(
        "--method", metavar="NAME", default=default, help="a name of `methods`, or FILE.py:CLASS"
    )
    implied = "; an N:M implies it" if pattern else ""
    parser.add_argument(
        "--sparsity", type=fraction, help=f"fraction of zeros, 0.6 or 60%%{implied}"
    )
    if pattern:
        parser.add_argument(
            "--pattern", help="unstructured, row, 2:4 (keep 2 of 4), block:4x4, channels:out"
        )
    add_settings(parser, "method")
    parser.add_argument(
        "--targets",
        type=patterns,
        action="append",
        metavar="PATTERN",
        help="layers by glob, re:REGEX or class name; a leading ! takes away; repeatable",
    )


def add_settings(parser: Parser, of: str) -> None:
    """Adds the repeatable --option KEY=VALUE.

    Args:
        parser: Where it goes.
        of: What is set: "method", "activation".
    """
    parser.add_argument(
        "--option",
        type=assignment,
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"a setting of the {of}, repeatable; `sparsecraft methods NAME` lists them",
    )


def method_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the method's settings that the arguments give, each given once.

    Raises:
        InvalidValue: If one is given twice.
    """
    options: dict[str, Any] = {}
    short = {"sparsity": arguments.sparsity, "pattern": getattr(arguments, "pattern", None)}
    given = [(key, value) for key, value in short.items() if value is not None]
    for key, value in [*given, *arguments.option]:
        if key in options:
            raise InvalidValue(f"{key} is given twice; give it once")
        options[key] = value
    return options
