"""Every example of the README and the documentation runs; every command in them parses."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

from sparsecraft.cli.main import VERBS
from sparsecraft.core import catalog

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def _commands(page: Path) -> list[str]:
    """Returns the calls of the program, also those by its path in a virtual environment."""
    lines = "\n".join(_blocks(page, "bash")).splitlines()
    found = (re.match(r"(?:\S*/)?(sparsecraft .*)", line) for line in lines)
    return [match[1] for match in found if match]


WITH_PYTHON = [name for name, page in zip(NAMES, PAGES, strict=True) if _blocks(page, "python")]
WITH_COMMANDS = [name for name, page in zip(NAMES, PAGES, strict=True) if _blocks(page, "bash")]


@pytest.mark.parametrize("name", WITH_PYTHON)
def test_python_examples_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    module = ModuleType("example")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    known = set(catalog.names())
    try:
        for block in _blocks(ROOT / name, "python"):
            exec(compile(block, name, "exec"), vars(module))
    finally:
        for added in set(catalog.names()) - known:
            del catalog._REGISTRY[added]


@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_commands_parse(name):
    for line in _commands(ROOT / name):
        program, verb, *arguments = shlex.split(line, comments=True)
        assert program == "sparsecraft"
        assert verb in VERBS, line
        importlib.import_module(f"sparsecraft.cli.{verb}").parser().parse_args(arguments)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    page = ROOT / name
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), f"{name}: {link}"


def test_some_examples_were_found():
    assert "README.md" in WITH_PYTHON
    assert sum(len(_commands(ROOT / name)) for name in WITH_COMMANDS) > 20
