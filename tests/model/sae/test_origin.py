"""Activations are taken again as those of the training were."""

import pytest
import torch
from tests.models import tiny_llama, tiny_tokenizer

from sparsecraft.core.errors import InvalidValue
from sparsecraft.domains.interpretability import evaluate
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.activation_store import ActivationStore
from sparsecraft.model.sae import SparseAutoencoder
from sparsecraft.model.sae.origin import harvest_remarks, harvest_settings

HOOK = "blocks.0.hook_resid_post"
TEXTS = [" ".join(str((i * 7 + j * j) % 50) for j in range(30)) for i in range(12)]


def saelens(**metadata):
    return {"saelens": {"metadata": metadata}}


def test_what_a_store_says_makes_the_same_store():
    options = {"context": 16, "prepend_bos": True, "skip_first": 2, "skip_special": [7, 9]}
    read = {"at": HOOK, "texts": TEXTS, "tokenizer": tiny_tokenizer()}
    store = ActivationStore(tiny_llama(), **read, **options)
    found = harvest_settings(store.info)
    assert found == {**options, "skip_special": (7, 9)}
    again = ActivationStore(tiny_llama(), **read, **found)
    every = torch.arange(len(store))
    assert torch.equal(store.rows(every).x, again.rows(every).x)


def test_what_is_not_known_is_left_to_the_defaults():
    assert harvest_settings({}) == {}
    assert harvest_settings({"special_ids": [], "prepend_bos": None, "context": None}) == {}
    kept = {"special_ids": [], "tokenizer": "gpt2", "prepend_bos": False}
    assert harvest_settings(kept) == {"skip_special": (), "prepend_bos": False}


def test_positions_that_a_store_cannot_take_are_refused():
    assert harvest_settings(saelens(seqpos_slice=[3, None])) == {}  # skip_first says it
    with pytest.raises(InvalidValue, match=r"positions \(5, -5\) of each context"):
        harvest_settings(saelens(seqpos_slice=[5, -5]))
    with pytest.raises(InvalidValue, match=r"positions \(0, None, 2\)"):
        harvest_settings(saelens(seqpos_slice=[0, None, 2]))


def test_a_centred_residual_stream_is_said():
    assert harvest_remarks(saelens(model_from_pretrained_kwargs={"fold_ln": True})) == ()
    centred = saelens(model_from_pretrained_kwargs={"center_writing_weights": True})
    (remark,) = harvest_remarks(centred)
    assert "do not centre" in remark


def test_evaluate_reads_texts_as_the_training_did():
    sae = SparseAutoencoder(32, 64, TopK(k=4))
    sae.info = {"hook": HOOK, "context": 16, "prepend_bos": True, "skip_first": 2}
    sae.info |= saelens(model_from_pretrained_kwargs={"center_writing_weights": True})
    found = evaluate(sae, model=tiny_llama(), texts=TEXTS, tokenizer=tiny_tokenizer(), contexts=2)
    store = ActivationStore(
        tiny_llama(), at=HOOK, texts=TEXTS, tokenizer=tiny_tokenizer(), context=16,
        prepend_bos=True, skip_first=2,
    )  # fmt: skip
    assert found.tokens == len(store) and any("do not centre" in note for note in found.notes)
    alone = evaluate(sae, store)
    assert found.fvu == pytest.approx(alone.fvu, rel=1e-6)
    assert not any("do not centre" in note for note in alone.notes)
