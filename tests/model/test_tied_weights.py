"""Ties are cut and made again, and the config stays true."""

import torch
from tests.models import tiny_llama

from sparsecraft.model.tied_weights import tie, untie

NAMES = ("model.embed_tokens.weight", "lm_head.weight")


def test_untied_matrices_are_equal_and_apart():
    model = tiny_llama(tie_word_embeddings=True)
    cut = untie(model, NAMES)
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    assert cut == (NAMES,)
    assert torch.equal(embedding, head) and embedding.data_ptr() != head.data_ptr()
    assert model.config.tie_word_embeddings is False
    tie(model, cut)
    assert model.lm_head.weight is model.model.embed_tokens.weight is embedding
    assert model.config.tie_word_embeddings is True


def test_what_is_not_tied_stays():
    model = tiny_llama()
    head = model.lm_head.weight
    assert untie(model, NAMES) == ()
    assert model.lm_head.weight is head
    assert untie(tiny_llama(tie_word_embeddings=True), NAMES[:1]) == ()


def test_frozen_stays_frozen():
    model = tiny_llama(tie_word_embeddings=True).requires_grad_(False)
    untie(model, NAMES)
    assert not model.lm_head.weight.requires_grad
