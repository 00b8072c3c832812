"""The catalog as tables and pages, and the written reference."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from tests.command import refused, run

from sparsecraft.cli.method_pages import TAXONOMY, example, page, pages
from sparsecraft.core import catalog
from sparsecraft.core.catalog import Taxonomy

REFERENCE = Path(__file__).parents[2] / "docs" / "methods"


def test_table_names_every_method(capsys):
    outcome = run(capsys, "methods")
    assert outcome.code == 0
    for name in catalog.names():
        assert f" {name} " in outcome.out
    assert f"{len(catalog.names())} methods" in outcome.out


def test_filters(capsys):
    shown = run(capsys, "methods", "--without", "data", "--criterion", "magnitude").out
    assert " magnitude " in shown
    assert " wanda " not in shown
    assert "Did you mean 'after training'" in refused(capsys, "methods", "--when", "after traning")
    assert "'wanda'" in refused(capsys, "methods", "wandas")
    assert "one method" in refused(capsys, "methods", "wanda", "--without", "data")


@pytest.mark.parametrize("name", catalog.names())
def test_page_tells_everything(capsys, name):
    info = catalog.get(name)
    shown = page(info)
    assert info.summary in shown
    assert str(info.paper) in shown
    assert set(TAXONOMY) == {field.name for field in dataclasses.fields(Taxonomy)}
    for option in info.options:
        row = next(line for line in shown.splitlines() if line.startswith(f"| {option} |"))
        assert row.split("|")[-2].strip(), f"{option} of {name} is not described"
    assert run(capsys, "methods", name).code == 0


@pytest.mark.parametrize("name", catalog.names())
def test_example_is_a_command_that_parses(name):
    from sparsecraft.cli import gate, methods, prune, sae

    words = example(catalog.get(name)).split()
    verb = {"prune": prune, "gate": gate, "methods": methods, "sae": sae}[words[1]]
    parsed = verb.parser().parse_args(words[2:])
    assert name in vars(parsed).values()


def test_written_reference_is_that_of_the_catalog():
    # Other tests may have registered methods of their own in this process.
    homes = ("sparsecraft.methods.", "sparsecraft.domains.")
    shipped = [i for i in catalog.select() if i.cls.__module__.startswith(homes)]
    wanted = pages(shipped)
    written = {path.name: path.read_text() for path in REFERENCE.glob("*.md")}
    assert written == wanted, "run: sparsecraft methods --markdown docs/methods"


def test_markdown_writes_the_reference(capsys, tmp_path):
    assert run(capsys, "methods", "--markdown", tmp_path / "pages").code == 0
    assert (tmp_path / "pages" / "wanda.md").read_text() == page(catalog.get("wanda"))
