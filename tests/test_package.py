"""The package from outside: what importing it costs, what it shows, what it needs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import sparsecraft

ROOT = Path(__file__).parents[1]


def _printed(script: str) -> str:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_importing_loads_nothing_heavy():
    loaded = _printed("import sys, sparsecraft; print(*sys.modules)").split()
    heavy = {"torch", "numpy", "transformers", "safetensors", "rich", "numba", "scipy"}
    assert "sparsecraft" in loaded
    assert not heavy & set(loaded)


def test_pruning_loads_no_extra():
    loaded = _printed(
        "import sys, torch, sparsecraft; before = set(sys.modules); "
        "sparsecraft.prune(torch.nn.Linear(8, 8), 'magnitude'); print(*set(sys.modules) - before)"
    ).split()
    extras = {"transformers", "sklearn", "skimage", "matplotlib", "datasets", "jinja2", "joblib"}
    assert "sparsecraft.model.pruning" in loaded
    assert not extras & set(loaded)


@pytest.mark.parametrize("name", sparsecraft.__all__)
def test_public_names_exist_and_are_documented(name):
    found = getattr(sparsecraft, name)
    assert (found.__doc__ or "").strip()
    assert name in dir(sparsecraft)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="prun"):
        _ = sparsecraft.prun


def test_version_is_that_of_the_project_and_the_citation():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == sparsecraft.__version__
    assert f"version: {sparsecraft.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {sparsecraft.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_dependencies_have_lower_bounds_only():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    for need in [*project["dependencies"], *(each for extra in extras for each in extra)]:
        assert not any(sign in need for sign in ("<", "==", "~=", "!=")), need
