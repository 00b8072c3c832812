import json
import os
import shutil

import pytest
import torch
from tests.command import refused, run
from tests.models import save_directory, tiny_bert, tiny_llama

import sparsecraft
from sparsecraft.model.gating import installed_gates

TEXT = "the cat sat on a mat . " * 400


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_directory(tiny_llama(), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_directory(tiny_bert(), tmp_path_factory.mktemp("models") / "bert")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_a_directory_goes_in_and_comes_out(capsys, directory, text, tmp_path):
    out = tmp_path / "gated"
    done = run(capsys, "gate", directory, "--sparsity", "65%", "--calibration", text, "--out", out)
    assert done.code == 0, done.err
    model = sparsecraft.load(out)
    gates = installed_gates(model)
    assert len(gates) == 14
    assert gates["model.layers.0.mlp.down_proj"].keep == int(64 * 0.35)
    assert {"tokenizer.json", "gates.safetensors", "sparsecraft_config.json"} <= {
        path.name for path in out.iterdir()
    }
    printed = " ".join(done.out.split())
    assert "asked sparsity 0.6500" in printed
    assert "measured on the calibration text: 0.6562 of gated tokens" in printed
    assert "rotated 2 blocks" in printed
    assert "bring no speed" in printed
    written = model.generate(torch.tensor([[1, 4]]), max_new_tokens=3, do_sample=False)
    assert written.shape == (1, 5)


def test_greedy_thresholds_and_held_out_text(capsys, directory, text, tmp_path):
    out, other = tmp_path / "gated", tmp_path / "other.txt"
    other.write_text("on a mat the cat sat . " * 200)
    done = run(
        capsys, "gate", directory, "--method", "teal", "--allocation", "greedy", "--sparsity",
        "0.5", "--option", "step=0.4", "--calibration", text, "--held-out", other, "--window",
        "32", "--max-tokens", "640", "--out", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    printed = " ".join(done.out.split())
    assert "model.layers.0: greedy error" in printed
    assert "measured on the held-out text" in printed
    assert "chosen on 640 tokens, fewer than 2048" in printed
    saved = json.loads((out / "sparsecraft_config.json").read_text())
    assert saved["gating"]["searches"]["model.layers.1"]


def test_an_encoder_is_gated_without_the_rotation(capsys, encoder, tmp_path):
    out = tmp_path / "gated"
    message = refused(capsys, "gate", encoder, "--out", out)
    assert "LayerNorm" in message
    assert "--no-rotation" in message
    done = run(capsys, "gate", encoder, "--no-rotation", "--out", out)
    assert done.code == 0, done.err
    assert len(installed_gates(sparsecraft.load(out))) == 12
    assert "not measured" in done.out


def test_a_dry_run_names_everything_and_writes_nothing(capsys, directory, tmp_path):
    done = run(capsys, "gate", directory, "--method", "teal", "--sparsity", "0.4", "--dry-run")
    assert done.code == 0, done.err
    assert "model.layers.1.mlp.up_proj" in done.out
    assert "0.4000" in done.out
    assert "outside the repeated blocks" in done.out
    assert "14 gates" in done.out
    assert not list(tmp_path.iterdir())


def test_a_gated_directory_is_refused(capsys, encoder, tmp_path):
    first = tmp_path / "first"
    assert run(capsys, "gate", encoder, "--no-rotation", "--out", first).code == 0
    message = refused(capsys, "gate", first, "--no-rotation", "--out", tmp_path / "second")
    assert "has 12 gates already (wina, sparsity 0.5)" in message


def test_a_pruned_model_keeps_its_masks_and_is_not_rotated(capsys, directory, tmp_path):
    pruned, out = tmp_path / "pruned", tmp_path / "gated"
    assert run(capsys, "prune", directory, "--sparsity", "0.5", "--out", pruned).code == 0
    message = refused(capsys, "gate", pruned, "--out", out)
    assert "pruned" in message
    assert "--no-rotation" in message
    assert run(capsys, "gate", pruned, "--no-rotation", "--out", out).code == 0
    assert (out / "masks.safetensors").is_file()
    assert "pruning" in json.loads((out / "sparsecraft_config.json").read_text())
    assert len(installed_gates(sparsecraft.load(out))) == 14


def test_a_quantised_directory_is_refused(capsys, directory, tmp_path):
    copy = shutil.copytree(directory, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (copy / "config.json").write_text(json.dumps(config))
    message = refused(capsys, "gate", copy, "--no-rotation", "--out", tmp_path / "out")
    assert "quanti" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "teal"], "thresholds are chosen on data, and none was given"),
        (["--method", "teal", "--no-rotation"], "teal rotates nothing"),
        (["--method", "wanda"], "wanda is a Layerwise method; gate takes Gate ones"),
        (["--method", "wna"], "Did you mean 'wina'"),
        (["--sparsity", "65"], "For 65 % write 0.65"),
        (["--sparsity", "0.99"], "keeps none"),
        (["--rule", "topp"], "Did you mean 'topk'"),
        (["--rule", "topk", "--option", "rule=topk"], "rule is given twice"),
        (["--prefill", "2"], "prefill=2.0 is not allowed"),
        (["--prefill", "some"], "prefill='some' is not a float"),
        (["--targets", "*.mlq.*"], "match no layer"),
        (["--pattern", "2:4"], "unknown '--pattern'"),
        (["--calibration", os.devnull], "too few for one window"),
        (["--calibration", "/no/such/file"], "cannot be read"),
    ],
)
def test_mistakes_get_one_line(capsys, directory, tmp_path, arguments, message):
    out = tmp_path / "out"
    assert message in refused(capsys, "gate", directory, *arguments, "--out", out)
    assert not out.exists()


def test_no_place_to_write_to(capsys, directory):
    assert "where shall the gated model go" in refused(capsys, "gate", directory)


def test_help_teaches(capsys):
    shown = run(capsys, "gate", "--help").out
    assert "examples:" in shown
    assert "--no-rotation" in shown
    assert "--allocation greedy" in shown
