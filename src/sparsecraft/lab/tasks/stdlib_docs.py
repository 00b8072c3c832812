"""The documentation inside the Python standard library: docstrings, comments, reference prose."""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

SKIPPED = frozenset(
    [
        "site-packages",
        "dist-packages",
        "test",
        "tests",
        "idlelib",
        "idle_test",
        "lib2to3",
        "turtledemo",
        "ensurepip",
        "encodings",
        "pydoc_data",
        "lib-dynload",
        "__pycache__",
        "__phello__",
    ]
)


@dataclass(frozen=True)
class Docstring:
    """One docstring of the standard library.

    Args:
        module: The file without its suffix, in dots, for example "json.decoder".
        name: The object's dotted name inside the module; empty for the module itself.
        text: The docstring, without its indentation.
    """

    module: str
    name: str
    text: str

    @property
    def package(self) -> str:
        """The top-level package or module, the unit in which splits are made."""
        return self.module.partition(".")[0]


def stdlib_root() -> Path:
    """Returns the folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def source_files() -> list[Path]:
    """Returns the library's own source files, sorted, without tests and generated tables."""
    root = stdlib_root()
    return [path for path in sorted(root.rglob("*.py")) if _is_source(path.relative_to(root))]


@lru_cache(maxsize=1)
def docstrings() -> tuple[Docstring, ...]:
    """Returns every docstring of the library's modules, classes and functions, in file order."""
    return tuple(doc for path in source_files() for doc in _docstrings_of(path))


def comments(path: Path) -> list[str]:
    """Returns the blocks of consecutive whole-line comments of a file, one string each."""
    blocks = re.findall(r"(?:^[ \t]*#.*\n)+", read_source(path), re.MULTILINE)
    return [squeeze(re.sub(r"^[ \t]*[#!]+", "", block, flags=re.MULTILINE)) for block in blocks]


def reference_paragraphs() -> list[str]:
    """Returns paragraphs of the language reference that the library carries, where it does."""
    path = stdlib_root() / "pydoc_data" / "topics.py"
    if not path.is_file():
        return []
    strings = (
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    return [squeeze(part) for text in strings for part in re.split(r"\n\s*\n", text)]


def read_source(path: Path) -> str:
    """Returns a source file's text, in the encoding that it declares; empty if unreadable."""
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError, OSError):
        return ""


def module_name(path: Path) -> str:
    """Returns the dotted module name of a source file of the standard library."""
    parts = list(path.relative_to(stdlib_root()).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def first_sentence(text: str) -> tuple[str, str]:
    r"""Returns the first sentence of a docstring and the rest, both on one line.

    Example:
        >>> first_sentence("Open a file. Raises OSError.\n\nThe mode is 'r'.")
        ('Open a file.', "Raises OSError. The mode is 'r'.")
    """
    paragraph, _, rest = text.partition("\n\n")
    found = re.match(r"(.+?[.!?])\s+(?=[A-Z\"'`(*<-])(.*)", paragraph, re.DOTALL)
    if found:
        paragraph, rest = found[1], f"{found[2]} {rest}"
    return squeeze(paragraph), squeeze(rest)


def mask_name(text: str, name: str) -> str:
    """Returns the text with the object's name, full or last part, replaced by "this".

    Example:
        >>> mask_name("Threads: a thread runs; see queue.Thread().", "queue.Thread")
        'Threads: a this runs; see this().'
    """
    parts = {name, name.rpartition(".")[2], name.rpartition(".")[2].strip("_")} - {""}
    if not parts:
        return text
    longest_first = "|".join(re.escape(part) for part in sorted(parts, key=len, reverse=True))
    return re.sub(rf"(?<!\w)(?:{longest_first})(?!\w)", "this", text, flags=re.IGNORECASE)


def squeeze(text: str) -> str:
    """Returns the text with every run of white space made one space."""
    return " ".join(text.split())


def order(*parts: str) -> bytes:
    """Returns a sort key that shuffles in the same way everywhere."""
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).digest()


def _is_source(relative: Path) -> bool:
    generated = relative.parts[0].startswith(("config-", "_sysconfigdata"))
    return not generated and SKIPPED.isdisjoint(relative.parts)


def _docstrings_of(path: Path) -> Iterator[Docstring]:
    try:
        tree = ast.parse(read_source(path))
    except (SyntaxError, ValueError):
        return
    module = module_name(path)
    for name, node in _definitions(tree, ""):
        text = ast.get_docstring(node)
        if text:
            yield Docstring(module, name, text)


Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
    if isinstance(node, ast.Module):
        yield "", node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{prefix}.{child.name}" if prefix else child.name
            yield name, child
            yield from _definitions(child, name)
        elif not isinstance(child, ast.expr):
            yield from _definitions(child, prefix)
