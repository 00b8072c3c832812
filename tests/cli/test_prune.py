"""`sparsecraft prune`: a directory in, a directory out, and nothing left unsaid."""

from __future__ import annotations

import json
import re

import pytest
import torch
from tests.command import refused, run
from tests.models import save_directory, tiny_gpt2, tiny_llama, tiny_mixtral

import sparsecraft
from sparsecraft.core.allocation import ERK
from sparsecraft.model.checkpoints import load, load_mask, load_pretrained, save

TEXT = "the cat sat on a mat . " * 200


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_directory(tiny_llama(), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def test_writes_what_the_library_would(capsys, directory, text, tmp_path):
    from transformers import AutoTokenizer

    from sparsecraft.model.calibration_text import tokenize_text

    out = tmp_path / "out"
    outcome = run(
        capsys, "prune", directory, "--method", "wanda", "--sparsity", "60%",
        "--calibration", text, "--window", "32", "--max-tokens", "320", "--out", out,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    expected = load_pretrained(directory)
    batches = tokenize_text(
        AutoTokenizer.from_pretrained(directory), TEXT, window=32, max_tokens=320
    )
    report = sparsecraft.prune(expected, "wanda", sparsity=0.6, calibration=batches)
    saved = load(out)
    for name, parameter in expected.named_parameters():
        assert torch.equal(parameter, saved.get_parameter(name)), name
    assert load_mask(out) == report.mask
    settings = json.loads((out / "sparsecraft_config.json").read_text())["pruning"]
    assert settings["method"]["method"] == "wanda"
    assert settings["calibration_tokens"] == 320
    assert (out / "config.json").read_text().count("sparsecraft") == 0
    assert len(AutoTokenizer.from_pretrained(out)) == 64
    assert "calibration on 320 tokens" in outcome.out
    assert "Zeros alone make it neither smaller on disk nor faster" in outcome.out


def test_asked_and_achieved_stand_side_by_side(capsys, directory, tmp_path):
    shown = run(capsys, "prune", directory, "--pattern", "2:4", "--out", tmp_path / "out").out
    row = next(line for line in shown.splitlines() if "mlp.up_proj" in line)
    assert [cell.strip() for cell in re.split("[│┃]", row)[1:-1]] == [
        "model.layers.*.mlp.up_proj", "2", "4096", "0.5000", "0.5000",
    ]  # fmt: skip
    assert "one axis: a bias or a normalisation" in shown
    assert "asked 0.5000, achieved 0.5000" in shown


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_mixtral])
def test_dry_run_names_every_parameter_once(capsys, tmp_path, make):
    model = make()
    source = save_directory(model, tmp_path / "model")
    outcome = run(capsys, "prune", source, "--dry-run", "--sparsity", "0.75")
    assert outcome.code == 0, outcome.err
    rows = [re.split("[│┃]", line) for line in outcome.out.splitlines() if line.startswith("│")]
    entries = {cells[1].strip(): int(cells[3]) for cells in rows}
    assert len(rows) == len(entries)
    assert entries == {name: p.numel() for name, p in model.named_parameters()}
    total = sum(p.numel() for p in model.parameters())
    assert f"with {total} entries in all; the model has {total}." in outcome.out
    assert all(cells[5].strip() for cells in rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_dry_run_plans_what_pruning_does(capsys, tmp_path):
    model = tiny_gpt2()
    source = save_directory(model, tmp_path / "model")
    arguments = ["prune", source, "--method", "random", "--option", "allocation=erk"]
    shown = run(capsys, *arguments, "--dry-run").out
    report = sparsecraft.prune(model, "random", allocation=ERK(), sparsity=0.5)
    for name, density in report.mask.densities.items():
        row = next(line for line in shown.splitlines() if f"│ {name} " in line)
        assert f"{density:.4f}" in row


def test_targets_and_seed(capsys, directory, tmp_path):
    arguments = ["prune", directory, "--method", "random", "--targets", "*.mlp.*,!*.0.*"]
    for seed, out in ((1, "a"), (1, "b"), (2, "c")):
        assert run(capsys, *arguments, "--seed", seed, "--out", tmp_path / out).code == 0
    masks = {name: load_mask(tmp_path / name) for name in "abc"}
    assert set(masks["a"]) == {
        f"model.layers.1.mlp.{n}_proj.weight" for n in ("gate", "up", "down")
    }
    assert masks["a"] == masks["b"]
    assert masks["a"] != masks["c"]


def test_dtype_stays_as_saved(capsys, tmp_path):
    source = save_directory(tiny_llama().bfloat16(), tmp_path / "model")
    assert run(capsys, "prune", source, "--out", tmp_path / "out").code == 0
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in saved.values()} == {torch.bfloat16}


def test_method_of_ones_own(capsys, directory, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    out = tmp_path / "out"
    outcome = run(capsys, "prune", directory, "--method", f"{path}:First", "--out", out)
    assert outcome.code == 0, outcome.err
    keep = load_mask(out)["model.layers.0.mlp.up_proj.weight"]
    assert keep.flatten()[: keep.numel() // 2].all()
    assert not keep.flatten()[keep.numel() // 2 :].any()


def test_compact_model_stays_compact(capsys, tmp_path):
    model = tiny_llama()
    mlp = model.model.layers[1].mlp  # narrower than its config says
    for name in ("gate_proj", "up_proj"):
        module = getattr(mlp, name)
        module.weight, module.out_features = torch.nn.Parameter(module.weight[:40].clone()), 40
    mlp.down_proj.weight = torch.nn.Parameter(mlp.down_proj.weight[:, :40].clone())
    mlp.down_proj.in_features = 40
    save(model, tmp_path / "model", form="compact")
    out = tmp_path / "out"
    assert run(capsys, "prune", tmp_path / "model", "--pattern", "2:4", "--out", out).code == 0
    pruned = load(out)
    assert pruned.model.layers[1].mlp.up_proj.weight.shape == (40, 32)
    assert load_mask(out).density == 0.5


def test_setting_given_twice(capsys, directory, tmp_path):
    message = refused(
        capsys, "prune", directory, "--sparsity", "0.5", "--option", "sparsity=0.6",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert "sparsity is given twice" in message


OWN = '''
"""Keeps the first weights; a method that is easy to check."""
from dataclasses import dataclass

import torch

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.kinds import Layerwise, Pruned
from sparsecraft.core.mask import count


@method(
    "first",
    paper=Paper("nobody", 2026),
    taxonomy=Taxonomy(
        of="weights", when="after training", start_to_end="dense to sparse", mask="static",
        criterion="none", granularity=("unstructured",), allocation="any",
        budget="hard per layer", needs=(), cost="none", runtime="none",
    ),
)
@dataclass(frozen=True, kw_only=True)
class First(Layerwise):
    """Keeps the first weights of each layer."""

    def prune(self, weight, layer):
        keep = torch.zeros(weight.numel(), dtype=torch.bool)
        keep[: count(weight.numel(), layer.density)] = True
        return Pruned.keeping(weight, keep.view_as(weight))
'''


def test_dsnot_says_what_it_swapped_and_keeps_the_statistics(capsys, directory, text, tmp_path):
    def pruned(name, *options):
        return run(
            capsys, "prune", directory, "--method", "dsnot", "--option", "layers=attention",
            "--sparsity", "0.6", "--calibration", text, "--window", "32", "--max-tokens", "320",
            "--statistics", tmp_path / "kept", "--out", tmp_path / name, *options,
        )  # fmt: skip

    first, again = pruned("first"), pruned("again", "--option", "cycles=0")
    assert first.code == again.code == 0, first.err + again.err
    shown = first.out + again.out
    heads = [line for line in shown.splitlines() if "achieved" in line and "swaps" in line]
    assert len(heads) == 2 and all("expected error" in line for line in heads)
    rows = [line for line in shown.splitlines() if "mlp.up_proj" in line]
    assert [row.count("none") for row in rows] == [3, 3]
    assert (tmp_path / "kept" / "statistics.json").is_file()
    assert "no data passed" not in first.out and "note: statistics taken from" in again.out
    assert load_mask(tmp_path / "first") != load_mask(tmp_path / "again")
    settings = json.loads((tmp_path / "first" / "sparsecraft_config.json").read_text())["pruning"]
    facts = {each["name"]: each.get("facts", {}) for each in settings["layers"]}
    assert facts["model.layers.0.self_attn.q_proj"]["swaps"] >= 0
    assert facts["model.layers.0.mlp.up_proj"] == {}
