"""`sparsecraft prune` for models larger than memory, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest
import torch
from tests.command import refused, run
from tests.models import save_directory, tiny_llama

from sparsecraft.model.checkpoints import load
from sparsecraft.model.streaming import choice

TEXT = "the cat sat on a mat . " * 200


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_directory(tiny_llama(), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def wanda(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    return ["--method", "wanda", "--calibration", text, "--window", "16", "--max-tokens", "160"]


def test_streamed_and_in_memory_are_one_model(capsys, directory, wanda, tmp_path):
    for way in ("always", "never"):
        done = run(capsys, "prune", directory, *wanda, "--stream", way, "--out", tmp_path / way)
        assert done.code == 0, done.err
        assert "peak memory" in done.out
    one, other = load(tmp_path / "always"), load(tmp_path / "never")
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name
    always, never = (
        (tmp_path / way / "masks.safetensors").read_bytes() for way in ("always", "never")
    )
    assert always == never


def test_auto_streams_what_does_not_fit(capsys, directory, wanda, tmp_path, monkeypatch):
    monkeypatch.setattr(choice, "_SLACK", 10**9)
    done = run(capsys, "prune", directory, *wanda, "--out", tmp_path / "out")
    assert done.code == 0, done.err
    assert "It is pruned block by block, from directory to directory." in done.out
    assert "block by block: calibration on 160 tokens" in done.out
    settings = json.loads((tmp_path / "out" / "sparsecraft_config.json").read_text())
    assert settings["pruning"]["streamed"] is True
    message = refused(
        capsys, "prune", directory, *wanda, "--stream", "never", "--out", tmp_path / "never"
    )
    assert "Leave out --stream never" in message
    message = refused(
        capsys, "prune", directory, "--method", "global_magnitude", "--out", tmp_path / "global"
    )
    assert "cannot work block by block" in message


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit of private memory")
def test_a_limit_below_the_size_of_the_model(tmp_path):
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 24}
    source = save_directory(tiny_llama(**sizes), tmp_path / "model")
    assert (source / "model.safetensors").stat().st_size > 250 * 2**20
    (tmp_path / "text.txt").write_text(TEXT)
    script = """
        import resource, sys
        from sparsecraft.cli.main import main
        resource.setrlimit(resource.RLIMIT_DATA, (700 * 2**20, 700 * 2**20))
        sys.exit(main(sys.argv[1:]))
    """
    arguments = ["prune", source, "--method", "wanda", "--calibration", tmp_path / "text.txt"]
    arguments += ["--window", 32, "--max-tokens", 256, "--out", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True, text=True, check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "RLIMIT_DATA of this process. It is pruned block by block" in done.stdout
    settings = json.loads((tmp_path / "out" / "sparsecraft_config.json").read_text())
    assert settings["pruning"]["private_bytes"] < 700 * 2**20


def test_dry_run_needs_no_memory(capsys, directory):
    shown = run(capsys, "prune", directory, "--stream", "always", "--dry-run")
    assert shown.code == 0, shown.err
    total = sum(p.numel() for p in tiny_llama().parameters())
    assert f"the model has {total}." in shown.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--dtype", "float16"], "--dtype float16 contradicts pruning block by block"),
        (["--packed"], "--packed contradicts pruning block by block"),
        (["--max-memory", "lots"], "'lots' is not a size in bytes"),
        (["--max-memory", "1MiB"], "needs about"),
        (["--method", "global_magnitude"], "compares the scores of all layers"),
    ],
)
def test_streaming_refuses(capsys, directory, tmp_path, options, words):
    out = tmp_path / "out"
    message = refused(capsys, "prune", directory, "--stream", "always", *options, "--out", out)
    assert words in message
    assert not out.exists()


def test_streaming_needs_a_directory(capsys, tmp_path):
    message = refused(
        capsys, "prune", tmp_path / "none", "--stream", "always", "--out", tmp_path / "out"
    )
    assert "there is no directory" in message


def test_too_little_memory_names_what_would_fit(capsys, directory, wanda, tmp_path):
    arguments = ["prune", directory, *wanda, "--stream", "never", "--out", tmp_path / "out"]
    message = refused(capsys, *arguments, "--max-memory", "1MiB")
    assert "max_memory" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("way", ["always", "never"])
def test_pruned_before(capsys, directory, tmp_path, way):
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert run(capsys, "prune", directory, "--sparsity", "0.25", "--out", once).code == 0
    arguments = ["prune", once, "--sparsity", "0.75", "--stream", way, "--out", twice]
    assert "was pruned before (by magnitude, sparsity 0.2500)" in refused(capsys, *arguments)
    done = run(capsys, *arguments, "--again")
    assert done.code == 0, done.err
    assert "note: pruned on top of an earlier pruning (by magnitude" in done.out
    assert (
        json.loads((twice / "sparsecraft_config.json").read_text())["pruning"]["sparsity"] == 0.75
    )


@pytest.mark.parametrize("way", ["always", "never"])
def test_quantised_and_tokenizerless(capsys, wanda, tmp_path, way):
    source = save_directory(tiny_llama(), tmp_path / "model")
    for path in source.glob("tokenizer*"):
        path.unlink()
    arguments = ["prune", source, *wanda, "--stream", way, "--out", tmp_path / "out"]
    assert "has no tokenizer" in refused(capsys, *arguments)
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq"}
    (source / "config.json").write_text(json.dumps(config))
    assert "is quantised (awq)" in refused(capsys, *arguments)
    assert not (tmp_path / "out").exists()


def test_packed_is_smaller_and_loads(capsys, directory, tmp_path):
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    for out, option in ((plain, []), (packed, ["--packed"])):
        done = run(capsys, "prune", directory, "--sparsity", "0.75", *option, "--out", out)
        assert done.code == 0, done.err
    one, other = load(plain), load(packed)
    for name, parameter in one.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name
    assert "holds packed weights" in refused(capsys, "prune", packed, "--out", tmp_path / "no")
