"""`sparsecraft compare`: its options are the settings class, and a store is never mixed up."""

from __future__ import annotations

import dataclasses
import json
import random
import shlex
from pathlib import Path

import pytest
from tests.command import refused, run
from tests.models import save_directory, tiny_llama

from sparsecraft.cli import compare
from sparsecraft.cli.docstrings import argument_docs
from sparsecraft.cli.settings_arguments import build
from sparsecraft.lab.settings import CompareSettings

WORDS = ("the", "cat", "sat", "on", "a", "mat", *".,0123456789")


def _settings(*arguments: str) -> CompareSettings:
    return build(CompareSettings, compare.parser().parse_args(arguments))


def test_no_arguments_are_the_defaults():
    assert _settings() == CompareSettings()


def test_every_field_is_an_option_with_its_own_help():
    docs = argument_docs(CompareSettings)
    actions = {action.dest: action for action in compare.parser()._actions}
    for field in dataclasses.fields(CompareSettings):
        assert actions[field.name].help.startswith(docs[field.name].replace("%", "%%"))


def test_values_as_people_write_them():
    given = _settings(
        "--method", "wanda,sparsegpt", "--method", "./mine.py:Mine", "--sparsity", "30%,0.5",
        "--max-drop", "3%", "--targets", "*.mlp.*", "--seeds", "3", "--overwrite",
        "--no-progress", "--prefer", "size", "--calibration-tokens", "1024",
    )  # fmt: skip
    assert given == CompareSettings(
        methods=("wanda", "sparsegpt", "./mine.py:Mine"),
        sparsities=(0.3, 0.5),
        max_drop=0.03,
        targets=("*.mlp.*",),
        seeds=3,
        overwrite=True,
        progress=False,
        prefer="size",
        calibration_tokens=1024,
    )


def test_the_command_of_a_report_repeats_its_settings(tmp_path):
    text = tmp_path / "my notes.txt"
    text.write_text("text")
    settings = CompareSettings(
        model="org/model",
        text=str(text),
        methods=("wanda",),
        patterns=("2:4", "row"),
        sparsities=(0.25,),
        targets=("*.mlp.*", "!*.0.*"),
        out=Path("somewhere"),
        overwrite=True,
        ffn_keep=0.25,
        distill_steps=7,
        setting="smoke",
    )
    words = shlex.split(settings.command())
    assert words[:2] == ["sparsecraft", "compare"]
    assert _settings(*words[2:]) == settings


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--sparsity", "1.2"], "fraction of zeros, in [0, 1)"),
        (["--method", "wandaa", "--dry-run"], "'wanda'"),
        (["--pattern", "2of4", "--dry-run"], "Unknown pattern"),
        (["--prefer", "sped"], "'speed'"),
        (["--seeds", "0"], "at least 1"),
        (["--seeds", "many"], "not a whole number"),
        (["--max-drop", "150%"], "max_drop"),
        (["some-model"], "--text FILE"),
        (["--text", "nowhere.txt"], "name the model"),
        (["--report", "nowhere"], "not a run store"),
        (["--report", "nowhere", "--seeds", "2"], "'seeds' has no effect"),
    ],
)
def test_refused_before_anything_runs(capsys, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert says in refused(capsys, "compare", *arguments)
    assert list(tmp_path.iterdir()) == []


def test_dry_run_names_the_arms_and_the_controls(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = run(capsys, "compare", "--method", "wanda", "--sparsity", "0.5", "--dry-run").out
    for arm in ("dense", "wanda 50 %", "wanda 2:4", "random 50 %", "random 2:4", "compact"):
        assert f"│ {arm} " in shown
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The arguments of a finished comparison of a tiny model, and its folder."""
    folder = tmp_path_factory.mktemp("compared")
    model = save_directory(tiny_llama(), folder / "model")
    text = folder / "text.txt"
    draw = random.Random(0)
    text.write_text(" ".join(draw.choice(WORDS) for _ in range(12_000)))
    arguments = ["compare", model, "--text", text, "--setting", "smoke", "--method", "magnitude"]
    return [*arguments, "--pattern", "2:4", "--no-progress"], folder / "out"


@pytest.mark.slow
def test_a_model_of_ones_own_resumed_redrawn_and_kept(capsys, compared):
    arguments, out = compared
    assert run(capsys, *arguments, "--out", out).code == 0
    report = out / "report.html"
    first = report.read_text()
    runs = {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")}
    assert "magnitude 2:4" in first
    assert "random 2:4" in first
    report.unlink()
    assert f"report: {report}" in run(capsys, "compare", "--report", out).out
    assert "magnitude 2:4" in report.read_text()
    assert run(capsys, *arguments, "--out", out).code == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").rglob("*")} == runs
    message = refused(capsys, *arguments, "--out", out, "--pattern", "4:8")
    assert "holds another comparison, so it is kept" in message


@pytest.mark.parametrize("version", [99, None, "1"])
def test_store_of_another_version_is_left_alone(capsys, compared, tmp_path, version):
    arguments, _ = compared
    store = tmp_path / "store"
    store.mkdir()
    header = {"sparsecraft_store": version, "sparsecraft": "9.9", "comparison": {}}
    (store / "store.json").write_text(json.dumps(header))
    for command in (["compare", "--report", store], [*arguments, "--out", store]):
        message = refused(capsys, *command)
        assert f"run store of format {version!r}" in message
        assert "Use the version that wrote it (9.9)" in message
    assert json.loads((store / "store.json").read_text()) == header


def test_store_begun_with_another_version_is_not_mixed(capsys, compared, tmp_path):
    arguments, _ = compared
    store = tmp_path / "store"
    store.mkdir()
    header = {"sparsecraft_store": 1, "sparsecraft": "0.0.1", "comparison": {}}
    (store / "store.json").write_text(json.dumps(header))
    message = refused(capsys, *arguments, "--out", store)
    assert "begun with sparsecraft 0.0.1" in message
