"""A model pruned from directory to directory is the one that is pruned in memory, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.models import ARCHITECTURES, batches_for, save_directory, tiny_llama, tiny_mixtral

from sparsecraft.model.checkpoints import load, load_pretrained, mask_bytes, quiet
from sparsecraft.model.pruning import prune
from sparsecraft.model.streaming import prune_directory
from sparsecraft.model.streaming.shards import Shards


def several_shards(model: torch.nn.Module, folder: Path) -> Path:
    with quiet():
        model.save_pretrained(str(folder), max_shard_size="20KB")
    return folder


def both(model, tmp_path, method, batches, **options):
    """Returns (model pruned in memory, its report, streamed directory, its report)."""
    source = several_shards(model, tmp_path / "dense")
    in_memory = load_pretrained(source, dtype=model.dtype)
    report = prune(in_memory, method, calibration=batches, **options)
    out = tmp_path / "sparse"
    streamed = prune_directory(source, out, method, calibration=batches, **options)
    return in_memory, report, out, streamed


CASES = [(name, "wanda") for name in ARCHITECTURES]
CASES += [("llama", "sparsegpt"), ("mixtral", "sparsegpt"), ("gpt2", "magnitude")]
CASES += [("mixtral", "magnitude"), ("vit", "random")]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_weights_masks_and_report(name, method, tmp_path):
    model = ARCHITECTURES[name]()
    batches = batches_for(model) if method in ("wanda", "sparsegpt") else []
    expected, report, out, streamed = both(model, tmp_path, method, batches, sparsity=0.6)
    loaded = load(out)
    for key, parameter in expected.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(key)), key
    assert (out / "masks.safetensors").read_bytes() == mask_bytes(report.mask)
    same = {"method", "seed", "asked", "sparsity", "layers", "parameters", "notes"}
    assert {k: report.to_json()[k] for k in same} == {k: streamed.to_json()[k] for k in same}


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "vit"])
def test_files_keep_their_names_keys_types_and_headers(name, tmp_path):
    model = ARCHITECTURES[name]().bfloat16()
    source = several_shards(model, tmp_path / "dense")
    prune_directory(source, tmp_path / "sparse", "magnitude", sparsity=0.5)
    before, after = Shards.of(source), Shards.of(tmp_path / "sparse")
    assert len(before.files) > 1
    assert before.digests == after.digests
    assert {e.type for e in after.entries.values()} == {"BF16"}
    for file in ("config.json", "model.safetensors.index.json"):
        assert (source / file).read_text() == (tmp_path / "sparse" / file).read_text()


def test_half_precision_is_computed_in_half_precision(tmp_path):
    model = tiny_llama().bfloat16()
    batches = batches_for(model)
    expected, _, out, _ = both(model, tmp_path, "wanda", batches, pattern="2:4")
    loaded = load(out, dtype=torch.bfloat16)
    for key, parameter in expected.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(key)), key


def test_tied_embeddings_and_targets_outside_the_blocks(tmp_path):
    model = tiny_llama(tie_word_embeddings=True)
    options = {"targets": ["*.mlp.*", "lm_head"], "sparsity": 0.5}
    with pytest.raises(ValueError, match=r"1 of the targets lie outside the blocks \(lm_head\)"):
        untied = several_shards(tiny_llama(), tmp_path / "untied")
        data = batches_for(model)
        prune_directory(untied, tmp_path / "no", "wanda", calibration=data, **options)
    expected, report, out, _ = both(
        model, tmp_path, "random", [], targets=["*.mlp.*"], allocation="erk"
    )
    loaded = load(out)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    for key, parameter in expected.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(key)), key
    assert (out / "masks.safetensors").read_bytes() == mask_bytes(report.mask)


def test_head_is_pruned_without_data(tmp_path):
    expected, report, out, streamed = both(
        tiny_llama(), tmp_path, "magnitude", [], targets=["*.mlp.*", "lm_head"], sparsity=0.5
    )
    assert torch.equal(expected.lm_head.weight, load(out).lm_head.weight)
    assert streamed.stages == 3
    assert (out / "masks.safetensors").read_bytes() == mask_bytes(report.mask)


def test_expert_that_no_token_reached_stays_dense_and_is_named(tmp_path):
    model = tiny_mixtral()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.gate.weight.zero_()  # all alike: the first two experts take every token
    expected, report, out, streamed = both(model, tmp_path, "wanda", batches_for(model))
    assert any("no calibration token reached it" in note for note in streamed.notes)
    assert streamed.notes == report.notes
    loaded = load(out)
    for key, parameter in expected.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(key)), key


@pytest.mark.parametrize("name", ["llama", "opt", "bert"])
def test_roles_of_layers_are_told_by_shapes(name, tmp_path):
    model = ARCHITECTURES[name]()
    expected, _, out, streamed = both(
        model, tmp_path, "dsnot", batches_for(model), sparsity=0.5, layers="attention"
    )
    loaded = load(out)
    for key, parameter in expected.named_parameters():
        assert torch.equal(parameter, loaded.get_parameter(key)), key
    assert any(row.facts for row in streamed.rows)


def test_what_lies_beside_the_weights(tmp_path):
    source = save_directory(tiny_llama(), tmp_path / "dense")
    report = prune_directory(source, tmp_path / "sparse", "magnitude", sparsity=0.25)
    names = {path.name for path in source.iterdir()}
    added = {"masks.safetensors", "sparsecraft_config.json"}
    assert {path.name for path in (tmp_path / "sparse").iterdir()} == names | added
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["dense", "sparse"]
    settings = json.loads((tmp_path / "sparse" / "sparsecraft_config.json").read_text())
    assert settings["form"] == "plain"
    assert settings["pruning"]["sparsity"] == report.sparsity == 0.25
    assert settings["pruning"]["streamed"] is True
    assert settings["pruning"]["peak_bytes"] > 0


def test_global_methods_are_refused(tmp_path):
    source = several_shards(tiny_llama(), tmp_path / "dense")
    with pytest.raises(ValueError, match="global_magnitude compares the scores of all layers"):
        prune_directory(source, tmp_path / "out", "global_magnitude")
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_named(tmp_path):
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    source = several_shards(model, tmp_path / "dense")
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight has NaN"):
        prune_directory(source, tmp_path / "out", "magnitude")
    assert not (tmp_path / "out").exists()


def test_progress_names_every_block(tmp_path):
    model = tiny_llama()
    source = several_shards(model, tmp_path / "dense")
    seen: list[tuple[str, int, int]] = []
    prune_directory(
        source, tmp_path / "out", "wanda", calibration=batches_for(model),
        progress=lambda *each: seen.append(each),
    )  # fmt: skip
    assert seen == [
        ("model.layers.0", 0, 2), ("model.layers.1", 1, 2), ("model.layers.1", 2, 2),
    ]  # fmt: skip
