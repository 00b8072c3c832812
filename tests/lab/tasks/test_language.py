from __future__ import annotations

import math
from itertools import islice

import numpy as np
import pytest
import torch
from torch import nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.tasks import load_task, text_task
from sparsecraft.lab.tasks.language import cut, without
from sparsecraft.lab.tasks.stdlib_lm import stdlib_texts
from sparsecraft.lab.tasks.text import read_text
from sparsecraft.lab.tasks.wikitext import wikitext2_texts


class Always(nn.Module):
    """Gives the same logits after every token."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, input_ids):
        return self.logits.expand(*input_ids.shape, -1)


def test_perplexity_of_a_uniform_guess_is_the_vocabulary(make_task):
    task = make_task("stdlib-lm")
    scores = task.evaluate(Always(torch.zeros(1024)), "test")
    assert scores.metric == pytest.approx(1024, rel=1e-5)
    assert scores.extra["nll"] == pytest.approx(math.log(1024), rel=1e-6)


def test_window_values_are_mean_negative_log_likelihoods(make_task):
    task = make_task("stdlib-lm")
    logits = torch.randn(1024, generator=torch.Generator().manual_seed(0))
    chances = logits.double().log_softmax(0)
    expected = [-chances[row[1:]].mean() for row in task.windows["validation"]]
    values = task.evaluate(Always(logits), "validation").values
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_kl_grows_with_the_distance_to_dense(make_task):
    task = make_task("stories260k")
    assert task.evaluate(Always(torch.zeros(296)), "test").extra["kl"] > 0.1


def test_windows_do_not_overlap_and_are_spread_when_limited():
    assert cut(list(range(11)), 3).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert cut(list(range(30)), 2, limit=3)[:, 0].tolist() == [0, 14, 28]
    assert cut([1], 2).shape == (0, 2)


def test_repeats_and_held_out_windows_are_dropped():
    windows = torch.tensor([[1, 2], [3, 4], [1, 2], [5, 6]])
    assert without(windows, torch.tensor([[3, 4]])).tolist() == [[1, 2], [5, 6]]


def test_training_is_reproducible_and_learns(make_task):
    task = make_task("stdlib-lm")
    first = [batch["input_ids"] for batch in islice(task.training_batches(4, seed=1), 3)]
    again = [batch["input_ids"] for batch in islice(task.training_batches(4, seed=1), 3)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    longer = load_task("stdlib-lm", files=25, steps=20)
    assert longer.fingerprint != task.fingerprint
    before = task.evaluate(task.load_model(), "validation").metric
    assert longer.evaluate(longer.load_model(), "validation").metric < before


def test_whole_files_are_held_out():
    texts = stdlib_texts()
    assert len(texts.test) > 40 and len(texts.validation) > 20
    assert not set(texts.test) & set(texts.validation)
    assert not set(texts.training) & {*texts.validation, *texts.test}


def test_the_tokenizer_loses_nothing(make_task):
    tokenizer = make_task("stdlib-lm").tokenizer
    text = "def f(x):\n\treturn 'é' * 2  # done\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_wikitext_articles_stay_whole(made_data):
    texts = wikitext2_texts(made_data / "wikitext2")
    assert (len(texts.training), len(texts.validation), len(texts.test)) == (48, 12, 30)
    assert all(text.count(" = Article ") == 1 for text in texts.training)


def test_wikitext_takes_a_pretrained_model(made_data, make_task, monkeypatch):
    monkeypatch.setenv("SPARSECRAFT_DATA", str(made_data))
    task = load_task("wikitext2-lm", model_dir=make_task("stdlib-lm").model_dir, context=32)
    assert task.windows["test"].shape[1] == 32
    assert math.isfinite(task.evaluate(task.load_model(), "test").metric)


def test_kind_is_read_from_the_config(make_task, text_file, encoder_dir):
    assert text_task(encoder_dir, text_file).kind == "embedding"
    assert text_task(make_task("stdlib-lm").model_dir, text_file).kind == "causal-lm"
    with pytest.raises(InvalidValue, match="kind='images'"):
        text_task(encoder_dir, text_file, kind="images")


def test_context_is_capped_by_the_model(make_task):
    assert make_task("causal-text").context == 128


def test_short_and_empty_texts_say_how_much_is_needed(make_task, encoder_dir, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("import os and then some more words\n" * 4)
    with pytest.raises(InvalidValue, match=r"need about \d+ characters"):
        text_task(make_task("stdlib-lm").model_dir, short)
    with pytest.raises(InvalidValue, match=r"about \d+ characters"):
        text_task(encoder_dir, short)
    short.write_text(" \n")
    with pytest.raises(InvalidValue, match=r"is empty.*\d+ characters"):
        read_text(short)
    short.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidValue, match="UTF-8"):
        read_text(short)
    with pytest.raises(InvalidValue, match="could not read"):
        read_text(tmp_path / "absent.txt")


def test_text_without_blank_lines_is_cut_into_chunks(encoder_dir, tmp_path):
    path = tmp_path / "words.txt"
    path.write_text(" ".join(f"word{i}" for i in range(64 * 60)))
    task = text_task(encoder_dir, path)
    assert len(task.corpus.documents) == 40


def test_a_data_set_is_read_as_text(tmp_path):
    pytest.importorskip("datasets")
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert read_text(f"hf:{tmp_path}") == "one\n\ntwo"
    with pytest.raises(InvalidValue, match="could not load the data set"):
        read_text(f"hf:{tmp_path / 'absent'}")


def test_wikitext_is_joined_as_the_published_protocol_does(made_data, make_task, monkeypatch):
    from sparsecraft.lab.measures.perplexity import perplexity

    monkeypatch.setenv("SPARSECRAFT_DATA", str(made_data))
    task = load_task("wikitext2-lm", model_dir=make_task("stdlib-lm").model_dir)
    lines = (made_data / "wikitext2" / "test.txt").read_text().split("\n")[:-1]
    whole = "\n\n".join(f"{line}\n" if line.strip() else "" for line in lines)
    ids = task.tokenizer(whole, verbose=False)["input_ids"]
    model = task.load_model()
    assert task.context == model.config.max_position_embeddings == 128
    assert len(task.windows["test"]) == len(ids) // 128
    found = task.evaluate(model, "test").metric
    assert found == pytest.approx(perplexity(model, ids), rel=1e-6)


def test_wikitext_says_that_its_text_is_word_level(made_data, make_task, monkeypatch):
    monkeypatch.setenv("SPARSECRAFT_DATA", str(made_data))
    task = load_task("wikitext2-lm", model_dir=make_task("stdlib-lm").model_dir)
    assert "word-level form" in task.description
    assert "not comparable with perplexities on raw text" in task.description
