"""`sparsecraft compare` on one tiny random model of each architecture, from directory to report.

A ViT reads no text: its comparison runs on the digits task, whose model is one.
"""

from __future__ import annotations

import json
import random

import pytest
from tests.models import ARCHITECTURES, save_directory

from sparsecraft import load
from sparsecraft.cli.main import main

_WORDS = ["the", "cat", "sat", "on", "a", "mat", *map(str, range(40))]
_DRAWS = random.Random(0)
TEXT = "\n\n".join(" ".join(_DRAWS.choices(_WORDS, k=32)) for _ in range(180))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "vit"])
def test_compare_runs_on_every_architecture_that_reads_text(name, tmp_path):
    model = save_directory(ARCHITECTURES[name](), tmp_path / name)
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    out = tmp_path / "out"
    arguments = ["--text", str(text), "--out", str(out), "--setting", "smoke"]
    assert main(["compare", str(model), *arguments]) == 0
    _check(out)


@pytest.mark.slow
def test_compare_runs_on_a_vit(tmp_path):
    out = tmp_path / "out"
    assert main(["compare", "--task", "digits-vit", "--out", str(out), "--setting", "smoke"]) == 0
    _check(out)


def _check(out) -> None:
    record = json.loads((out / "comparison.json").read_text())
    arms = {arm["id"]: arm for arm in record["arms"]}
    assert {"dense", "int8", "random/2:4/0.5", "wanda/2:4/0.5", "compact"} <= set(arms)
    ran = {name for name, arm in arms.items() if arm["runs"]}
    assert {"dense", "global_magnitude/unstructured/0.5", "wanda/unstructured/0.5"} <= ran
    for name in set(arms) - ran:
        assert arms[name]["note"], f"{name} did not run and nothing says why"
    for name in ran:
        assert arms[name]["latency"]["1"]["ms"] > 0
    assert sum(row["numel"] for row in record["targets"]) == record["model"]["parameters"]
    assert "<svg" in (out / "report.html").read_text()
    saved = record["choice"].get("saved_to")
    if saved:
        assert load(saved) is not None
