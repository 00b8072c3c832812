"""Hook points by path and by TransformerLens' names, on every architecture that has them."""

import pytest
import torch
from tests.models import ARCHITECTURES, batches_for, tiny_bert, tiny_llama, tiny_mixtral
from torch import nn

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.model.hook_points import hook_point, lens_names


def taken(model, name):
    """Returns the tensor that a hook point sees in one pass, and the handle is gone."""
    seen = []
    handle = hook_point(model, name).watch(seen.append)
    with torch.no_grad():
        model(**batches_for(model)[0])
    handle.remove()
    assert len(seen) == 1
    return seen[0]


def test_a_module_that_is_called_output_goes_before_the_suffix():
    model = tiny_bert()
    point = hook_point(model, "encoder.layer.1.output")
    assert point.module is model.encoder.layer[1].output and point.kind == "output"
    assert hook_point(model, "encoder.layer.1.input").module is model.encoder.layer[1]
    assert hook_point(model, "encoder.layer.1.input").kind == "input"


def test_the_prefix_of_a_model_with_a_head_may_be_left_out():
    model = tiny_llama()
    assert hook_point(model, "layers.1").place == hook_point(model, "model.layers.1").place


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3", "gpt2", "opt", "mixtral"])
def test_the_residual_stream_adds_up(name):
    model = ARCHITECTURES[name]()
    parts = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
    pre, attention, mid, mlp, post = (
        taken(model, f"blocks.1.hook_{part}").reshape(3, 12, -1) for part in parts
    )
    torch.testing.assert_close(pre + attention, mid)
    torch.testing.assert_close(mid + mlp, post)


def test_parallel_blocks_add_both_halves_to_what_they_read():
    model = ARCHITECTURES["gpt-neox"]()
    pre, attention, mlp, post = (
        taken(model, f"blocks.0.hook_{part}")
        for part in ("resid_pre", "attn_out", "mlp_out", "resid_post")
    )
    torch.testing.assert_close(pre + attention + mlp, post)
    with pytest.raises(InvalidValue, match=r"hook_resid_mid is not to be had"):
        hook_point(model, "blocks.0.hook_resid_mid")


def test_bert_has_a_norm_behind_each_sum():
    model = tiny_bert()
    layer = model.encoder.layer[0]
    pre, attention, mid, mlp, post, normalized = (
        taken(model, f"blocks.0.hook_{part}")
        for part in (
            "resid_pre",
            "attn_out",
            "resid_mid",
            "mlp_out",
            "resid_post",
            "normalized_resid_post",
        )
    )
    torch.testing.assert_close(pre + attention, mid)
    torch.testing.assert_close(layer.attention.output.LayerNorm(mid) + mlp, post)
    torch.testing.assert_close(layer.output.LayerNorm(post), normalized)
    torch.testing.assert_close(taken(model, "blocks.1.hook_resid_pre"), normalized)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "bert", "opt"])
def test_z_and_post_are_what_the_last_matrices_read(name):
    model = ARCHITECTURES[name]()
    z, out = taken(model, "blocks.0.attn.hook_z"), taken(model, "blocks.0.hook_attn_out")
    last = {
        "llama": "model.layers.0.self_attn.o_proj",
        "gpt2": "transformer.h.0.attn.c_proj",
        "gpt-neox": "gpt_neox.layers.0.attention.dense",
        "bert": "encoder.layer.0.attention.output.dense",
        "opt": "model.decoder.layers.0.self_attn.out_proj",
    }[name]
    torch.testing.assert_close(model.get_submodule(last)(z), out)
    assert taken(model, "blocks.0.mlp.hook_post").shape[-1] in (64, 128)


def test_unknown_names_have_the_closest_ones():
    with pytest.raises(UnknownName, match=r"Did you mean 'model\.layers\.1'"):
        hook_point(tiny_llama(), "model.layer.1")
    with pytest.raises(UnknownName, match=r"'blocks\.1\.hook_resid_post'"):
        hook_point(tiny_llama(), "blocks.7.hook_resid_post")


def test_a_tensor_that_no_module_gives_is_said_to_be_missing():
    with pytest.raises(InvalidValue, match=r"There are blocks\.0\.hook_resid_pre"):
        hook_point(tiny_mixtral(), "blocks.0.mlp.hook_post")


def test_the_middle_of_a_block_can_be_read_but_not_replaced():
    point = hook_point(tiny_llama(), "blocks.0.hook_resid_mid")
    with pytest.raises(InvalidValue, match="neither replaced nor differentiated"):
        point.replace(lambda x: x)


class Pair(nn.Module):
    """Gives a tuple, and is called with a keyword."""

    def forward(self, *, hidden):
        return hidden + 1, "second"


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.pair = Pair()

    def forward(self, x):
        return self.pair(hidden=x)


def test_tuples_and_keyword_inputs_are_replaced_in_place():
    model, x = Outer(), torch.zeros(2, 3)
    with hook_point(model, "pair").replace(lambda y: y * 10):
        assert model(x)[0].tolist() == [[10.0] * 3] * 2 and model(x)[1] == "second"
    with hook_point(model, "pair.input").replace(lambda y: y + 4):
        assert model(x)[0].tolist() == [[5.0] * 3] * 2
    assert model(x)[0].tolist() == [[1.0] * 3] * 2


def test_the_hidden_state_of_a_whole_model_is_read_and_replaced():
    model = tiny_llama()
    batch = batches_for(model)[0]
    with torch.no_grad():
        logits = model(**batch).logits
        hidden = taken(model, "model")
        with hook_point(model, "model").replace(lambda x: 2 * x):
            doubled = model(**batch).logits
    torch.testing.assert_close(model.lm_head(hidden), logits)
    torch.testing.assert_close(doubled, 2 * logits)


def test_what_is_no_tensor_is_refused():
    words = nn.Sequential(Words())
    with (
        hook_point(words, "0").watch(lambda x: None),
        pytest.raises(InvalidValue, match="no tensor"),
    ):
        words(torch.zeros(1))


class Words(nn.Module):
    def forward(self, x):
        return "words"


def test_places_know_their_name_in_transformer_lens():
    model = tiny_llama()
    names = lens_names(model)
    assert names["model.layers.1.output"] == "blocks.1.hook_resid_post"
    assert names["model.layers.1.self_attn.o_proj.input"] == "blocks.1.attn.hook_z"
    assert "model.layers.1.post_attention_layernorm.output" not in names
    assert all(hook_point(model, name).place == place for place, name in names.items())
