"""The way from a hook point to the logits: which norm, which hooks, and what is said."""

import pytest
import torch
from tests import models
from torch import nn

from sparsecraft.domains.interpretability.browse.effects import logit_effects
from sparsecraft.domains.interpretability.browse.readout import find_readout

TOKENS = torch.tensor([[-1, 5, 9, 3, 7], [4, 4, 6, 8, -1]])
SIZES = {"vocab_size": models.VOCAB, "hidden_size": models.WIDTH, "num_hidden_layers": 2}


def tiny(name, **sizes):
    import transformers

    config = getattr(transformers, f"{name}Config")(**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def tiny_gemma2():
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    return tiny("Gemma2", **SIZES, **heads, intermediate_size=64, pad_token_id=0)


def tiny_phi():
    return tiny("Phi", **SIZES, num_attention_heads=4, intermediate_size=64, pad_token_id=0)


def tiny_mpt():
    return tiny("Mpt", vocab_size=models.VOCAB, d_model=models.WIDTH, n_layers=2, n_heads=4)


def tiny_mamba():
    return tiny("Mamba", **SIZES, state_size=4, pad_token_id=0)


PLACES = {  # a block, and the last norm
    models.tiny_llama: ("model.layers.0", "model.norm"),
    tiny_gemma2: ("model.layers.0", "model.norm"),
    tiny_phi: ("model.layers.0", "model.final_layernorm"),
    tiny_mpt: ("transformer.blocks.0", "transformer.norm_f"),
    tiny_mamba: ("backbone.layers.0", "backbone.norm_f"),
    models.tiny_gpt2: ("transformer.h.0", "transformer.ln_f"),
    models.tiny_opt: ("model.decoder.layers.0", "model.decoder.final_layer_norm"),
    models.tiny_neox: ("gpt_neox.layers.0", "gpt_neox.final_layer_norm"),
}


@pytest.mark.parametrize("make", PLACES, ids=lambda make: make.__name__)
def test_effects_are_what_the_last_norm_and_the_head_make_of_a_direction(make):
    model, (block, last) = make(), PLACES[make]
    norm = model.get_submodule(last)
    draw = torch.Generator().manual_seed(1)
    norm.weight.data = torch.randn(models.WIDTH, generator=draw)
    direction = torch.randn(1, models.WIDTH, generator=draw)
    way, remark = find_readout(model, block, TOKENS, models.WIDTH)
    assert remark == ""
    found = logit_effects(way, direction, places=models.VOCAB)
    # What the norm divides by is taken out again: of the direction alone, and not of a stream.
    centred = isinstance(norm, nn.LayerNorm)
    size = direction.std(correction=0) if centred else direction.square().mean().sqrt()
    with torch.no_grad():
        logits = size * norm(direction) @ model.get_output_embeddings().weight.T
    expected = logits.sort(descending=True)
    torch.testing.assert_close(found.raised_by, expected.values, rtol=1e-3, atol=1e-4)
    assert found.raised[0, 0] == expected.indices[0, 0]


@pytest.mark.parametrize(
    "at",
    [
        "model.layers.0",
        "model.layers.1.input",
        "model.embed_tokens",
        "model.norm.input",
        "blocks.1.hook_resid_mid",
        "blocks.0.hook_attn_out",
        "model.layers.0.self_attn.o_proj",
        "model.layers.1.mlp.down_proj",
    ],
)
def test_what_is_on_the_residual_stream_has_effects(at):
    way, remark = find_readout(models.tiny_llama(), at, TOKENS, models.WIDTH)
    assert way is not None and remark == ""


@pytest.mark.parametrize(
    "at",
    [
        "blocks.0.attn.hook_z",
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.input_layernorm",
        "model.layers.1.mlp.input",
    ],
)
def test_what_is_as_wide_as_the_stream_and_not_on_it_has_none(at):
    way, remark = find_readout(models.tiny_llama(), at, TOKENS, models.WIDTH)
    assert way is None
    assert f"{at} is not on the residual stream" in remark


def test_inside_blocks_of_a_family_that_is_not_known_the_hook_is_not_vouched_for():
    model = tiny_phi()
    for at in ("model.layers.0.mlp", "model.layers.0.self_attn.q_proj"):
        way, remark = find_readout(model, at, TOKENS, models.WIDTH)
        assert way.gain is not None
        assert remark.endswith(f"it is not known whether {at} is on the residual stream")


def test_a_model_that_wants_more_than_tokens_has_no_effects():
    class Wants(Unlisted):
        def forward(self, input_ids, images):
            return super().forward(input_ids)

    way, remark = find_readout(Wants(), "block", TOKENS, 8)
    assert way is None and remark.endswith("Wants does not run on token ids alone")


def test_another_width_is_said():
    way, remark = find_readout(models.tiny_llama(), "blocks.0.mlp.hook_post", TOKENS, 64)
    assert way is None
    assert "latents write 64 entries to blocks.0.mlp.hook_post, and the head reads 32" in remark


def test_a_head_behind_more_than_a_norm_has_no_effects():
    from transformers import BertConfig, BertForMaskedLM

    sizes = {**SIZES, "num_attention_heads": 4, "intermediate_size": 64}
    model = BertForMaskedLM(BertConfig(**sizes))
    way, remark = find_readout(model, "bert.encoder.layer.0", TOKENS, models.WIDTH)
    assert way is None and "was not recognised as one norm" in remark
    assert model.training
    assert find_readout(models.tiny_bert(), "encoder.layer.0", TOKENS, 32)[1].startswith(
        "the model has no output head"
    )


class Scales(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.full((models.WIDTH,), 3.0))

    def forward(self, x):
        return x * self.weight


def test_a_last_norm_that_is_not_known_is_said():
    model = models.tiny_llama()
    model.model.norm = Scales()
    way, remark = find_readout(model, "model.layers.0", TOKENS, models.WIDTH)
    assert way.gain is None
    assert remark.endswith("the gain of the last norm, model.norm (Scales), is not applied")
    model.model.norm = nn.Identity()
    way, remark = find_readout(model, "model.layers.0", TOKENS, models.WIDTH)
    assert way.gain is None and "no norm was found" in remark


def test_blocks_of_several_kinds_are_known_by_what_they_hand_on():
    model = models.tiny_llama()
    model.model.layers[1] = Other(model.model.layers[1])
    way, remark = find_readout(model, "model.layers.0", TOKENS, models.WIDTH)
    assert way.gain is not None and remark == ""
    inside = find_readout(model, "model.layers.0.input_layernorm", TOKENS, models.WIDTH)
    assert inside[0] is not None and "it is not known whether" in inside[1]


class Other(nn.Module):
    """A block of another class than its neighbours."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, *args, **kwargs):
        return self.block(*args, **kwargs)


class Unlisted(nn.Module):
    """A language model without a list of blocks."""

    def __init__(self):
        super().__init__()
        self.embed, self.block = nn.Embedding(models.VOCAB, 8), nn.Linear(8, 8)
        self.norm, self.head = nn.RMSNorm(8), nn.Linear(8, models.VOCAB, bias=False)

    def get_output_embeddings(self):
        return self.head

    def forward(self, input_ids):
        x = self.embed(input_ids)
        return self.head(self.norm(x + self.block(x)))


def test_where_the_blocks_are_not_known_the_hook_is_not_vouched_for():
    way, remark = find_readout(Unlisted(), "block", TOKENS, 8)
    assert way.gain is not None
    assert remark.endswith("it is not known whether block is on the residual stream")
    broken = find_readout(nn.ModuleList(), "x", TOKENS, 8)
    assert broken == (None, "the model has no output head, so there are no effects on logits")
