"""`sparsecraft train`: the table, the finished model, going on, and its errors."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from safetensors.torch import load_file
from tests.command import refused, run

QUICK = ("digits-mlp", "--method", "rigl", "--sparsity", "0.9", "--steps", "25")


def test_a_method_beside_its_controls(capsys, tmp_path):
    out = tmp_path / "out"
    outcome = run(capsys, "train", *QUICK, "--out", out)
    assert outcome.code == 0, outcome.err
    for words in ("dense", "random static, 90% zeros", "training FLOPs", "ECE", "plain form"):
        assert words in outcome.out
    assert "1 seed: no interval" in outcome.out
    assert "simulated: no speed-up from zeros alone" in outcome.out
    assert "small dense" in outcome.out
    found = json.loads((out / "report.json").read_text())
    assert [arm["role"] for arm in found["arms"]] == [
        "method",
        "dense",
        "small dense",
        "random static",
    ]
    assert "<svg" in (out / "report.html").read_text()
    weights = load_file(out / "model" / "model.safetensors")
    matrices = [value for value in weights.values() if value.dim() == 2]
    zeros = sum(int((value == 0).sum()) for value in matrices)
    assert zeros / sum(value.numel() for value in matrices) == pytest.approx(0.9, abs=1e-3)

    again = run(capsys, "train", *QUICK, "--out", out)
    assert json.loads((out / "report.json").read_text())["arms"] == found["arms"]
    assert again.code == 0
    message = refused(capsys, "train", *QUICK, "--out", out, "--learning-rate", "0.1")
    assert "other settings: learning_rate is 0.002 there and 0.1 here" in message
    message = refused(capsys, "prune", out / "checkpoints", "--out", tmp_path / "pruned")
    assert "in the middle of a sparse training" in message


def test_alone_and_from_the_trained_model(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSECRAFT_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    arguments = ("digits-mlp", "--method", "static", "--option", "source=snip", "--sparsity", "80%")
    arguments += ("--steps", "10", "--from-trained", "--no-controls", "--optimizer", "sgd")
    outcome = run(capsys, "train", *arguments, "--out", out)
    assert outcome.code == 0, outcome.err
    assert "note: the controls were left out" in outcome.out
    arm, *smaller = json.loads((out / "report.json").read_text())["arms"]
    assert [each["role"] for each in smaller] in ([], ["compact"])
    assert arm["runs"][0]["trainings"] == 2
    assert arm["runs"][0]["test"] > 0.5


def test_whole_neurons_leave_a_smaller_model(capsys, tmp_path):
    out = tmp_path / "out"
    arguments = ("digits-mlp", "--method", "wgsef", "--option", "sparsity=0.75", "--optimizer")
    arguments += ("sgd", "--steps", "12", "--finetune-steps", "6", "--no-controls")
    outcome = run(capsys, "train", *arguments, "--out", out)
    assert outcome.code == 0, outcome.err
    assert "wgsef, made smaller, 6 steps more" in outcome.out
    assert f"smaller model: {out / 'compact'}" in outcome.out
    assert "latency made smaller, batch 1: " in outcome.out
    weights = load_file(out / "compact" / "model.safetensors")
    assert weights["layers.1.weight"].shape == (64, 64)
    assert weights["layers.3.weight"].shape == (64, 64)
    message = refused(capsys, "prune", out / "compact", "--out", tmp_path / "pruned")
    assert "plain torch model of the task digits-mlp" in message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("digits-mpl", "--method", "rigl"), "Did you mean 'digits-mlp'"),
        (("digits-mlp",), "--method NAME is needed"),
        (("digits-mlp", "--method", "riggle"), "Did you mean 'rigl'"),
        (("digits-mlp", "--method", "wanda"), "--method static --option source=wanda"),
        (("digits-mlp", "--method", "iterative_magnitude"), "kind Recipe"),
        (("digits-mlp", "--method", "rigl", "--sparsity", "90"), "For 90 % write 0.9"),
        (("digits-mlp", "--method", "rigl", "--option", "evry=3"), "Did you mean 'every'"),
        (
            ("digits-mlp", "--method", "rigl", "--sparsity", "0.5", "--option", "sparsity=0.6"),
            "sparsity is given twice",
        ),
        (("digits-mlp", "--method", "cast", "--optimizer", "sgd"), "say --optimizer adams"),
        (
            ("digits-mlp", "--method", "rigl", "--optimizer", "adma"),
            "Did you mean 'adamw' or 'adams'",
        ),
        (("digits-mlp", "--method", "rigl", "--steps", "0"), "at least 1"),
        (("digits-mlp", "--method", "rigl", "--finetune-steps", "5"), "rigl does not remove any"),
        (("digits-mlp", "--method", "wgsef", "--absorb-bias"), "remove channels by their scales"),
        (("digits-mlp", "--method", "rigl", "--steps", "9", "--option", "every=50"), "no update"),
        (("digits-mlp", "--method", "rigl", "--targets", "nothing.*"), "match no layer"),
        (("digits-mlp", "--method", "rigl", "--from-scratch", "--from-trained"), "not allowed"),
    ],
)
def test_errors_are_one_line_and_leave_no_training(capsys, tmp_path, arguments, words):
    message = refused(capsys, "train", *arguments, "--out", tmp_path / "out")
    assert words in message
    assert not list(tmp_path.rglob("*.pt"))
    assert not list(tmp_path.rglob("runs/*"))


def test_a_training_that_a_wrong_setting_stopped_can_be_begun_anew(capsys, tmp_path):
    wrong = ("digits-mlp", "--method", "rigl", "--steps", "9", "--option", "every=50")
    refused(capsys, "train", *wrong, "--out", tmp_path / "out")
    right = ("digits-mlp", "--method", "set", "--steps", "9", "--option", "every=2")
    outcome = run(capsys, "train", *right, "--no-controls", "--out", tmp_path / "out")
    assert outcome.code == 0, outcome.err


@pytest.mark.slow
def test_two_processes_take_part_and_one_of_them_writes(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--master_port", "29733", "-m", "sparsecraft", "train", *QUICK]
    launch += ["--no-controls", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("finished model") == 1
    (arm,) = json.loads((tmp_path / "out" / "report.json").read_text())["arms"]
    assert arm["runs"][0]["processes"] == 2
    assert load_file(tmp_path / "out" / "model" / "model.safetensors")
