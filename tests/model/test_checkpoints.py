"""Model directories are checked before they are read, and written whole."""

import json

import pytest
import torch
from torch import nn

from sparsecraft import load, prune
from sparsecraft.core.errors import CheckpointError, InvalidValue
from sparsecraft.model.checkpoints import (
    check_safetensors,
    load_mask,
    load_pretrained,
    read_settings,
    save,
)

transformers = pytest.importorskip("transformers")


def tiny():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=50,
        max_position_embeddings=16,
    )
    return transformers.BertModel(config).eval()


TOKENS = {"input_ids": torch.arange(10)[None]}


def test_a_pruned_model_loads_anywhere_and_says_what_was_done(tmp_path):
    model = tiny()
    report = prune(model, "magnitude", sparsity=0.5)
    plain = tiny().config.to_dict()
    save(model, tmp_path / "m", mask=report.mask, settings=report.to_json())
    anywhere = transformers.AutoModel.from_pretrained(tmp_path / "m")
    ours = load(tmp_path / "m")
    for other in (anywhere.eval(), ours):
        torch.testing.assert_close(other(**TOKENS).last_hidden_state, model(**TOKENS)[0])
    assert set(anywhere.state_dict()) == set(model.state_dict())
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert not {"sparsity_config", "compression_config", "quantization_config"} & set(config)
    assert set(config) <= set(plain) | {"architectures", "transformers_version"}
    assert load_mask(tmp_path / "m").density == report.mask.density
    assert read_settings(tmp_path / "m")["method"]["method"] == "magnitude"


def test_a_revived_weight_is_noticed_at_loading_and_saving(tmp_path):
    model = tiny()
    report = prune(model, "magnitude", sparsity=0.5)
    save(model, tmp_path / "m", mask=report.mask)
    for parameter in model.parameters():
        parameter.data.add_(1.0)
    with pytest.raises(InvalidValue, match="not zero"):
        save(model, tmp_path / "other", mask=report.mask)
    assert not (tmp_path / "other").exists()


def test_an_existing_directory_is_kept(tmp_path):
    save(tiny(), tmp_path / "m")
    with pytest.raises(CheckpointError, match="overwrite"):
        save(tiny(), tmp_path / "m")
    save(tiny(), tmp_path / "m", overwrite=True)
    assert load(tmp_path / "m") is not None


def test_no_weights_only_a_pickle_and_a_cut_off_file(tmp_path):
    save(tiny(), tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    data = weights.read_bytes()
    for cut in (3, 100, len(data) - 7):
        weights.write_bytes(data[:cut])
        with pytest.raises(CheckpointError, match=r"cut off|not a safetensors"):
            load_pretrained(tmp_path / "m")
    weights.unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        load_pretrained(tmp_path / "m")
    torch.save(tiny().state_dict(), tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="--allow-pickle"):
        load_pretrained(tmp_path / "m")
    trusted = load_pretrained(tmp_path / "m", allow_pickle=True)
    torch.testing.assert_close(trusted(**TOKENS)[0], tiny()(**TOKENS)[0])


def test_missing_shards_and_missing_config_are_named(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path / "m", max_shard_size="20KB")
    shards = sorted((tmp_path / "m").glob("model-*.safetensors"))
    assert len(shards) > 1
    load_pretrained(tmp_path / "m")
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=shards[1].name):
        load_pretrained(tmp_path / "m")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        load_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="no directory"):
        load_pretrained(tmp_path / "absent")


def test_a_damaged_header_is_told_from_a_short_file(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes((20).to_bytes(8, "little") + b"not json at all.....")
    with pytest.raises(CheckpointError, match="damaged header"):
        check_safetensors(path)


def test_a_later_version_is_refused(tmp_path):
    save(tiny(), tmp_path / "m")
    (tmp_path / "m" / "sparsecraft_config.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(CheckpointError, match="version 99"):
        load(tmp_path / "m")


def test_the_compact_form_restores_shapes_that_the_config_cannot_say(tmp_path):
    model = tiny()
    attention = model.encoder.layer[0].attention
    keep = torch.arange(16)  # the first two of four heads
    for name in ("query", "key", "value"):
        old = getattr(attention.self, name)
        new = nn.Linear(32, 16)
        new.weight.data, new.bias.data = old.weight.data[keep], old.bias.data[keep]
        setattr(attention.self, name, new)
    dense = nn.Linear(16, 32)
    dense.weight.data = attention.output.dense.weight.data[:, keep]
    dense.bias.data = attention.output.dense.bias.data
    attention.output.dense = dense
    attention.self.num_attention_heads, attention.self.all_head_size = 2, 16
    save(model, tmp_path / "m", form="compact")
    loaded = load(tmp_path / "m")
    torch.testing.assert_close(loaded(**TOKENS)[0], model(**TOKENS)[0])


def test_a_plain_module_is_written_as_safetensors(tmp_path):
    from safetensors.torch import load_file

    layer = nn.Linear(4, 4)
    save(layer, tmp_path / "m")
    assert torch.equal(load_file(tmp_path / "m" / "model.safetensors")["weight"], layer.weight)
