"""The residual stream is found by behaviour, whatever its modules are called."""

import pytest
import torch
import torch.nn.functional as F
from tests.models import tiny_llama
from torch import nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.rotation import rotate
from sparsecraft.model.stream_search import find_stream

WIDTH, HIDDEN, WORDS = 16, 24, 32
BATCH = {"words": torch.arange(8)[None]}
SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class Mixing(nn.Module):
    """Attention whose layers have names that say nothing, and whose first is the value's."""

    def __init__(self, causal):
        super().__init__()
        self.causal = causal
        self.alpha, self.beta, self.gamma = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.delta = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        value, query, key = self.alpha(x), self.beta(x), self.gamma(x)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        return self.delta(mixed)


class Widening(nn.Module):
    """An MLP, gated or not, with the gate second."""

    def __init__(self, gated):
        super().__init__()
        self.first = nn.Linear(WIDTH, HIDDEN)
        self.second = nn.Linear(WIDTH, HIDDEN) if gated else None
        self.third = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x):
        if self.second is None:
            return self.third(F.relu(self.first(x)))
        return self.third(self.first(x) * F.silu(self.second(x)))


class Step(nn.Module):
    def __init__(self, causal, gated):
        super().__init__()
        self.one, self.two = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        # Registered in another order than they run in.
        self.widen, self.mix = Widening(gated), Mixing(causal)

    def forward(self, x):
        x = x + self.mix(self.one(x))
        return x + self.widen(self.two(x))


class Nameless(nn.Module):
    """A decoder (or encoder) without a config, written by hand."""

    def __init__(self, causal=True, gated=True):
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(64, WIDTH)
        self.steps = nn.ModuleList(Step(causal, gated) for _ in range(2))
        self.last = nn.RMSNorm(WIDTH)
        self.out = nn.Linear(WIDTH, WORDS)

    def forward(self, words):
        x = self.words(words) + self.places(torch.arange(words.shape[1]))[None]
        for step in self.steps:
            x = step(x)
        return self.out(self.last(x))


def nameless(**options):
    torch.manual_seed(0)
    return Nameless(**options)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@torch.no_grad()
def test_keys_and_gate_are_found_by_what_they_do(causal, gated):
    stream = find_stream(nameless(causal=causal, gated=gated), BATCH)
    block, attention, mlp = stream.blocks[0]
    assert block == "steps.0"
    assert attention.orthogonal == "steps.0.mix.gamma"
    assert attention.writers == ("steps.0.mix.delta.weight",)
    assert attention.biases == ("steps.0.mix.delta.bias",)
    assert mlp.orthogonal == ("steps.0.widen.second" if gated else "steps.0.widen.first")
    assert (attention.norm, mlp.norm, stream.norm) == ("steps.0.one", "steps.0.two", "last")
    assert stream.embeddings == ("words.weight", "places.weight")
    assert stream.heads == ("out.weight",)


@torch.no_grad()
def test_a_model_written_by_hand_is_rotated():
    model = nameless()
    before = model(**BATCH)
    rotation = rotate(model, example_input=BATCH)
    torch.testing.assert_close(model(**BATCH), before, rtol=0, atol=1e-4)
    assert len(rotation.orthogonal) == 4
    rotation.undo()
    assert torch.equal(model(**BATCH), before)


def _transformers(name, **changes):
    import transformers

    config = getattr(transformers, f"{name}Config")(**{**SIZES, **changes})
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@torch.no_grad()
def test_fused_matrices_are_made_orthogonal_as_a_whole():
    model = _transformers("Phi3")
    ids = torch.arange(12)[None]
    before = model(input_ids=ids).logits
    rotation = rotate(model)
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=0, atol=1e-4)
    assert "model.layers.0.self_attn.qkv_proj" in rotation.orthogonal
    assert "model.layers.1.mlp.gate_up_proj" in rotation.orthogonal


@torch.no_grad()
def test_a_gain_kept_as_gain_minus_one_is_folded():
    model = _transformers("Gemma", head_dim=8)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.uniform_(-0.3, 0.3)
    ids = torch.arange(12)[None]
    before = model(input_ids=ids).logits
    rotate(model)
    torch.testing.assert_close(model(input_ids=ids).logits, before, rtol=0, atol=1e-4)
    assert not model.model.norm.weight.any()


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("Gemma2", {"head_dim": 8}, r"layers\.0 cannot be rotated: it runs input_layernorm, self"),
        ("Granite", {"residual_multiplier": 0.5}, r"not the plain pre-norm block"),
        ("Olmo2", {}, r"not the plain pre-norm block"),
        ("Cohere", {}, r"it runs input_layernorm, self_attn, mlp, not norm"),
        ("Phi3", {"resid_pdrop": 0.1}, r"resid_attn_dropout"),
        (
            "Qwen2Moe",
            {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
            r"shared_expert\.\w+ cannot be rotated: beside the experts",
        ),
        (
            "GptOss",
            {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
            r"GptOssAttention reads or writes",
        ),
    ],
)
def test_other_blocks_are_refused_by_name(name, changes, reason):
    model = _transformers(name, **changes)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InvalidValue, match=reason):
        rotate(model)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_blocks_of_two_lists_are_refused():
    model = nn.ModuleDict({"encoder": nameless(), "decoder": nameless()})
    model.forward = lambda words: model["decoder"](words) + model["encoder"](words)
    with pytest.raises(InvalidValue, match="has 2 lists of blocks, not one"):
        find_stream(model, BATCH)


def test_the_search_leaves_the_model_as_it_was():
    model = tiny_llama().train()
    find_stream(model, {"input_ids": torch.arange(8)[None]})
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(parameter.grad is not None for parameter in model.parameters())
