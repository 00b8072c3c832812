"""A model without memory for its parameters, and the tensors of its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models import ARCHITECTURES, batches_for, tiny_llama, tiny_mixtral

from sparsecraft.core.errors import CheckpointError
from sparsecraft.core.mask import Mask
from sparsecraft.model.checkpoints import load_pretrained, mask_bytes, quiet
from sparsecraft.model.streaming.output import OutputMasks
from sparsecraft.model.streaming.shards import Shards
from sparsecraft.model.streaming.skeleton import Skeleton, without_memory


def saved(model: torch.nn.Module, folder: Path) -> Path:
    with quiet():
        model.save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_is_that_of_the_loaded_model(name, tmp_path):
    source = saved(ARCHITECTURES[name](), tmp_path / "m")
    skeleton = Skeleton(Shards.of(source))
    loaded = dict(load_pretrained(source).named_parameters())
    assert all(p.is_meta for p in skeleton.model.parameters())
    assert loaded.keys() == dict(skeleton.model.named_parameters()).keys()
    with skeleton.filled(loaded) as filled:
        for key, parameter in loaded.items():
            assert torch.equal(filled[key], parameter), key
    assert all(p.is_meta for p in skeleton.model.parameters())
    assert skeleton.nbytes(loaded) == 4 * sum(p.numel() for p in loaded.values())


def test_buffers_are_computed_or_read(tmp_path):
    source = saved(tiny_llama(), tmp_path / "m")
    mine = dict(Skeleton(Shards.of(source)).model.named_buffers())
    for name, buffer in load_pretrained(source).named_buffers():
        assert torch.equal(mine[name], buffer), name


def test_filled_on_use_leaves_the_blocks_alone(tmp_path):
    skeleton = Skeleton(Shards.of(saved(tiny_llama(), tmp_path / "m")))
    batch = batches_for(skeleton.model, count=1)[0]
    with torch.no_grad(), skeleton.filled_on_use(("model.layers.",)):
        skeleton.model.model.embed_tokens(batch["input_ids"])
        assert not skeleton.model.model.embed_tokens.weight.is_meta
        assert skeleton.model.model.layers[0].mlp.up_proj.weight.is_meta
    assert skeleton.model.model.embed_tokens.weight.is_meta


def test_building_changes_nothing_outside():
    state = torch.get_rng_state()
    with without_memory(torch.bfloat16):
        layer = torch.nn.Linear(4, 4)
    assert (layer.weight.is_meta, layer.weight.dtype) == (True, torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), state)
    plain = torch.nn.Linear(4, 4)
    assert (plain.weight.is_meta, plain.weight.dtype) == (False, torch.float32)


def test_weights_that_are_missing_or_of_another_shape(tmp_path):
    source = saved(tiny_llama(), tmp_path / "m")
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({k: v for k, v in tensors.items() if k != name}, source / "model.safetensors")
    skeleton = Skeleton(Shards.of(source))
    words = rf"has no weights for {name}.*--stream never"
    with pytest.raises(CheckpointError, match=words), skeleton.filled([name]):
        pass
    save_file({**tensors, name: torch.zeros(3, 3)}, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"shape \(3, 3\), where the model that config"):
        Skeleton(Shards.of(source))


def test_experts_that_are_only_there_in_part(tmp_path):
    source = saved(tiny_mixtral(), tmp_path / "m")
    tensors = load_file(source / "model.safetensors")
    lost = "model.layers.0.block_sparse_moe.experts.1.w2.weight"
    assert lost in tensors
    save_file({k: v for k, v in tensors.items() if k != lost}, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"entries of model\.layers\.0\.mlp\.experts\.down"):
        Skeleton(Shards.of(source))


def test_files_are_checked_first(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        Shards.of(tmp_path)
    source = saved(tiny_llama(), tmp_path / "m")
    data = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(data[:-10])
    with pytest.raises(CheckpointError, match="is cut off"):
        Shards.of(source)


def test_a_shard_of_the_index_that_is_missing(tmp_path):
    source = saved(tiny_llama(), tmp_path / "m")
    (source / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}})
    )
    with pytest.raises(CheckpointError, match="lacks 1 of its shards"):
        Shards.of(source)


def test_masks_written_one_by_one_are_the_file_of_all(tmp_path):
    draws = torch.Generator().manual_seed(0)
    shapes = {"b": (3, 5), "a": (2, 2, 4), "c": (1, 8)}
    masks = {name: torch.rand(shape, generator=draws) < 0.5 for name, shape in shapes.items()}
    output = OutputMasks(shapes, tmp_path)
    output.prepare()
    for name in ("c", "a", "b"):
        output.write(name, masks[name])
    assert output.path.read_bytes() == mask_bytes(Mask(masks))
    assert output.nbytes == output.path.stat().st_size
