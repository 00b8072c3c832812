"""What small files say decides whether a directory may be pruned, before a weight is read."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models import tiny_llama

from sparsecraft import prune
from sparsecraft.core.errors import CheckpointError
from sparsecraft.model.checkpoints import quiet, save
from sparsecraft.model.prunable import check_prunable


@pytest.fixture
def source(tmp_path):
    with quiet():
        tiny_llama().save_pretrained(str(tmp_path / "dense"))
    return tmp_path / "dense"


def with_settings(source, **settings):
    (source / "sparsecraft_config.json").write_text(json.dumps({"version": 1, **settings}))
    return source


def test_dense_models_and_hub_ids_pass(source):
    assert check_prunable(source) == ()
    assert check_prunable("org/name") == ()


def test_pruned_before(tmp_path):
    model = tiny_llama()
    report = prune(
        model, "wanda", sparsity=0.5, calibration=[{"input_ids": torch.ones(1, 8).long()}]
    )
    save(model, tmp_path / "m", mask=report.mask, settings={"pruning": report.to_json()})
    with pytest.raises(CheckpointError, match=r"by wanda, sparsity 0\.5000.*--again"):
        check_prunable(tmp_path / "m")
    assert check_prunable(tmp_path / "m", again=True) == (
        "pruned on top of an earlier pruning (by wanda, sparsity 0.5000)",
    )


def test_masks_alone_tell_it_too(tmp_path):
    model = tiny_llama()
    save(model, tmp_path / "m", mask=prune(model, "magnitude").mask)
    with pytest.raises(CheckpointError, match=r"it has a masks\.safetensors"):
        check_prunable(tmp_path / "m")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"form": "augmented", "gates": {"a": 1}}, "is a gated model"),
        ({"form": "augmented", "gating": {"method": "wina"}}, "Prune the model first, then gate"),
        ({"form": "augmented", "gates": {}}, "modules of sparsecraft beside its own"),
        ({"form": "packed", "gates": {}}, "holds packed weights"),
        ({"form": "training"}, "in the middle of a sparse training"),
    ],
)
def test_other_forms_are_refused_with_the_way_out(source, settings, words):
    with pytest.raises(CheckpointError) as caught:
        check_prunable(with_settings(source, **settings), again=True)
    assert words in str(caught.value)


def test_quantised_by_its_config(source):
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"is quantised \(gptq\).*whose zeros are not zeros"):
        check_prunable(source)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int32])
def test_quantised_by_its_tensors(source, dtype):
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(dtype)
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"is quantised: {name} is of the type"):
        check_prunable(source)


def test_integer_buffers_are_no_weights(source):
    tensors = load_file(source / "model.safetensors")
    tensors["embeddings.position_ids"] = torch.arange(8)[None]
    tensors["attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
    save_file(tensors, source / "model.safetensors")
    assert check_prunable(source) == ()
