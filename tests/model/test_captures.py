import copy
import math

import pytest
import torch
import torch.nn.functional as F
from tests import models
from torch import nn

from sparsecraft.core.errors import MissingStatistic, NoMatch, UnknownName
from sparsecraft.model.captures import (
    ActivationCapture,
    AttentionCapture,
    HiddenCapture,
    LogitCapture,
    capture,
)

BLOCKS = 2


class Own(nn.Module):
    """An attention layer as people write it, in steps or with the fused product."""

    def __init__(self, fused: bool, **options) -> None:
        super().__init__()
        self.project = nn.Linear(8, 24)
        self.fused = fused
        self.options = options

    def forward(self, x):
        q, k, v = self.project(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v, **self.options)
        return (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v


def listening(model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.mark.parametrize("name", models.ARCHITECTURES)
def test_real_maps_of_every_architecture(name):
    model = models.ARCHITECTURES[name]()
    batch = models.batches_for(model)[0]
    plain = model(**batch)[0]
    before = model.config._attn_implementation
    found = AttentionCapture(model)
    output = model(**batch)[0]
    torch.testing.assert_close(output, plain, rtol=1e-4, atol=1e-5)
    assert len(found.maps) == BLOCKS
    for each in found.maps:
        assert each.dim() == 4
        assert each.shape[:2] == (3, 4)
        assert each.requires_grad
        torch.testing.assert_close(each.sum(-1), torch.ones(each.shape[:-1]))
    found.remove()
    assert model.config._attn_implementation == before
    assert listening(model) == 0


def test_maps_are_those_that_the_model_gives_itself():
    model = models.tiny_vit()
    batch = models.batches_for(model)[0]
    found = AttentionCapture(model)
    theirs = model(**batch, output_attentions=True).attentions
    assert all(torch.equal(a, b) for a, b in zip(found.maps, theirs, strict=True))


def test_maps_are_seen_before_dropout():
    model = models.tiny_vit(attention_probs_dropout_prob=0.5).train()
    found = AttentionCapture(model)
    model(**models.batches_for(model)[0])
    for each in found.maps:
        torch.testing.assert_close(each.sum(-1), torch.ones(each.shape[:-1]))


def test_a_penalty_on_the_maps_trains_queries_and_keys():
    model = models.tiny_vit()
    found = AttentionCapture(model)
    model(**models.batches_for(model)[0])
    found.maps[-1].square().mean().backward()
    last = model.vit.layers[-1].attention
    for layer in (last.q_proj, last.k_proj):
        assert float(layer.weight.grad.abs().sum()) > 0
    assert last.v_proj.weight.grad is None


def test_only_the_last_pass_is_kept():
    model = Own(fused=False)
    found = AttentionCapture(model)
    assert found.maps == []
    model(torch.randn(2, 3, 8))
    model(torch.randn(5, 3, 8))
    assert [tuple(each.shape) for each in found.maps] == [(5, 2, 3, 3)]
    found.clear()
    assert found.maps == []


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": torch.tensor([[True, False, True]] * 3)},
        {"attn_mask": torch.tensor([[0.5, -1.0, 0.0]] * 3)},
    ],
    ids=str,
)
def test_the_fused_product_in_steps(options):
    model = Own(fused=True, **options)
    x = torch.randn(2, 3, 8)
    plain = model(x)
    found = AttentionCapture(model)
    torch.testing.assert_close(model(x), plain)
    torch.testing.assert_close(found.maps[0].sum(-1), torch.ones(2, 2, 3))


@pytest.mark.parametrize(
    ("compute", "count"),
    [
        (lambda x: torch.softmax(input=x, dim=-1), 1),
        (lambda x: nn.Softmax(3)(x), 1),
        (lambda x: F.softmax(x, -1, dtype=torch.float64), 1),
        (lambda x: x.softmax(1), 0),
        (lambda x: x[0].softmax(-1), 0),
    ],
)
def test_which_softmaxes_are_attention(compute, count):
    class Computes(nn.Module):
        def forward(self, x):
            return compute(x)

    model = Computes()
    found = AttentionCapture(model)
    model(torch.randn(2, 3, 4, 5, requires_grad=True))
    assert len(found._kept) == count


def test_grouped_queries_in_steps():
    class Grouped(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    tensors = (
        torch.randn(2, 4, 3, 8, requires_grad=True),
        torch.randn(2, 2, 3, 8),
        torch.randn(2, 2, 3, 8),
    )
    model = Grouped()
    plain = model(*tensors)
    found = AttentionCapture(model)
    torch.testing.assert_close(model(*tensors), plain)
    assert found.maps[0].shape == (2, 4, 3, 3)


@pytest.mark.parametrize("training", [True, False])
def test_multihead_attention_of_torch(training):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
    x = torch.randn(3, 5, 8)
    plain = model(x)
    found = AttentionCapture(model)
    torch.testing.assert_close(model(x), plain, rtol=1e-4, atol=1e-5)
    assert [tuple(each.shape) for each in found.maps] == [(3, 2, 5, 5)] * 2
    assert all(each.requires_grad for each in found.maps)


@pytest.mark.parametrize("asked", [None, "averaged", "every head"])
def test_multihead_attention_still_gives_what_is_asked(asked):
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(
                x, x, x, need_weights=bool(asked), average_attn_weights=asked == "averaged"
            )

    model, x = Asks(), torch.randn(3, 5, 8)
    plain = model(x)
    found = AttentionCapture(model)
    output = model(x)
    torch.testing.assert_close(output[0], plain[0])
    assert (output[1] is None) == (plain[1] is None)
    if asked:
        torch.testing.assert_close(output[1], plain[1])
    assert found.maps[0].shape == (3, 2, 5, 5)


def test_logits_are_what_enters_the_softmax():
    model = Own(fused=True, is_causal=True)
    x = torch.randn(2, 3, 8)
    maps, logits = AttentionCapture(model), LogitCapture(model)
    model(x)
    (found,), (expected,) = logits.maps, maps.maps
    assert found.isfinite().all()
    assert not found[expected == 0].any()
    again = found.masked_fill(expected == 0, -math.inf).softmax(-1)
    torch.testing.assert_close(again, expected)


def test_hidden_states_are_those_of_the_blocks():
    model = models.tiny_llama()
    batch = models.batches_for(model)[0]
    found = HiddenCapture(model)
    theirs = model(**batch, output_hidden_states=True).hidden_states
    assert len(found.states) == BLOCKS
    assert torch.equal(found.states[0], theirs[1])
    assert found.states[-1].requires_grad


@pytest.mark.parametrize("name", ["vit", "gpt2", "llama", "gpt-neox", "opt"])
def test_activations_are_what_enters_the_narrowing_layer(name):
    model = models.ARCHITECTURES[name]()
    found = ActivationCapture(model)
    model(**models.batches_for(model)[0])
    width = 4 * models.WIDTH if name == "gpt2" else 2 * models.WIDTH
    assert [each.shape[-1] for each in found.values] == [width] * BLOCKS


def test_a_failed_pass_leaves_nothing_in_force():
    model = Own(fused=False)
    found = AttentionCapture(model)
    with pytest.raises(RuntimeError):
        model(torch.randn(2, 3, 9))
    torch.randn(1, 1, 2, 2).softmax(-1)
    assert found._kept == []
    model(torch.randn(2, 3, 8))
    assert len(found.maps) == 1


def test_a_copy_of_the_model_computes_and_does_not_share_the_maps():
    model = models.tiny_vit()
    found = AttentionCapture(model)
    batch = models.batches_for(model)[0]
    output = model(**batch).logits
    kept = found.maps[0]
    twin = copy.deepcopy(model)
    assert torch.equal(twin(**batch).logits, output)
    assert found.maps[0] is kept


def test_nothing_to_capture_says_how_to_switch():
    model = nn.Sequential(nn.Linear(4, 4))
    found = AttentionCapture(model)
    model(torch.ones(2, 4))
    with pytest.raises(MissingStatistic, match=r'attn_implementation="eager".*fused_attn=False'):
        _ = found.maps
    logits = LogitCapture(nn.MultiheadAttention(8, 2))
    logits._leave()
    with pytest.raises(MissingStatistic, match="MultiheadAttention shows its maps, not its logits"):
        _ = logits.maps


def test_maps_without_gradient_are_refused_where_the_model_trains():
    model = models.tiny_vit().train()
    batch = models.batches_for(model)[0]
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found = AttentionCapture(model)
    model(**batch)
    found.maps[-1].sum().backward()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.vit.embeddings.position_embeddings.requires_grad_()
    model(**batch)
    with pytest.raises(MissingStatistic, match="use_reentrant=False"):
        _ = found.maps
    with torch.no_grad():
        model(**batch)
    assert not found.maps[0].requires_grad


def test_models_without_blocks_and_unknown_names():
    plain = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(NoMatch, match=r"hidden states.*no repeated blocks"):
        HiddenCapture(plain)
    with pytest.raises(NoMatch, match=r"MLP activations.*no repeated blocks"):
        ActivationCapture(plain)
    with pytest.raises(NoMatch, match="back to the block's width"):
        ActivationCapture(models.tiny_mixtral())
    with pytest.raises(UnknownName, match=r"capture 'atention'.*'attention'"):
        capture("atention", plain)
    assert isinstance(capture("attention", plain), AttentionCapture)
    assert listening(models.tiny_mixtral()) == 0
