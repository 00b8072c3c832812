"""The little of SVG that the charts need: elements with escaped text and short numbers."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape


def element(tag: str, *content: str, **attributes: object) -> str:
    """Returns an element; `content` is SVG already, attribute values are escaped here.

    An underscore in an attribute's name becomes a hyphen, one at its end is dropped, and
    attributes that are None are left out.

    Example:
        >>> element("text", "a", x=1.0, class_="tick")
        '<text x="1" class="tick">a</text>'
    """
    pairs = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_text(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return f"<{tag}{pairs}>{''.join(content)}</{tag}>"


def text(words: str, x: float, y: float, **attributes: object) -> str:
    """Returns a text element with its words escaped."""
    return element("text", escape(words), x=x, y=y, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, **attributes: object) -> str:
    """Returns a straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, **attributes)


def points(corners: Iterable[tuple[float, float]]) -> str:
    """Returns corners as the value of a `points` attribute."""
    return " ".join(f"{_text(x)},{_text(y)}" for x, y in corners)


def _text(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
