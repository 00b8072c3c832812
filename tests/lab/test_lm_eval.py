"""The answers to the harness's requests, by hand; and the harness itself where it is installed."""

from __future__ import annotations

import math

import pytest
import torch
from tests.models import tiny_bert, tiny_llama, tiny_tokenizer
from torch import nn

import sparsecraft
from sparsecraft.core.errors import InvalidValue, MissingDependency
from sparsecraft.lab.lm_eval import Answers, harness_model, rolling_windows
from sparsecraft.lab.measures.perplexity import tokenize


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def answers(model):
    return Answers(model, tiny_tokenizer(), batch_size=2)


def by_hand(model, context, continuation):
    """Returns log-likelihood and greediness from one forward pass, in float64."""
    ids = torch.tensor([[*context, *continuation]])
    with torch.no_grad():
        chances = model(input_ids=ids).logits[0].double().log_softmax(-1)
    places = range(len(context) - 1, len(context) + len(continuation) - 1)
    value = sum(float(chances[i, t]) for i, t in zip(places, continuation, strict=True))
    return value, all(int(chances[i].argmax()) == t for i, t in zip(places, continuation))  # noqa: B905


def test_continuations_are_scored_whatever_shares_their_batch(model, answers):
    requests = [("the cat", " sat"), ("a", " mat . , on"), ("sat on", " a"), ("", "the cat")]
    found = answers.loglikelihood(requests)
    pairs = [([4, 5], [6]), ([8], [9, 10, 11, 7]), ([6, 7], [8]), ([1], [4, 5])]
    for answer, pair in zip(found, pairs, strict=True):
        value, greedy = by_hand(model, *pair)
        assert answer[0] == pytest.approx(value, rel=1e-5)
        assert answer[1] == greedy


def test_the_greedy_continuation_is_called_greedy(model, answers):
    ids = torch.tensor([[4, 5]])
    best = int(model(input_ids=ids).logits[0, -1].argmax())
    word = tiny_tokenizer().decode([best])
    assert answers.loglikelihood([("the cat", f" {word}")])[0][1]
    assert not answers.loglikelihood([("the cat", " [UNK]")])[0][1] or word == "[UNK]"


def test_a_space_at_the_end_of_the_context_belongs_to_the_continuation(answers):
    assert answers.loglikelihood([("the ", "cat")]) == answers.loglikelihood([("the", " cat")])


def test_first_token_before_every_context_on_request(model):
    with_first = Answers(model, tiny_tokenizer(), add_bos=True)
    found = with_first.loglikelihood([("the cat", " sat")])[0][0]
    assert found == pytest.approx(by_hand(model, [1, 4, 5], [6])[0], rel=1e-5)


def test_long_contexts_lose_their_beginning(model):
    short = Answers(model, tiny_tokenizer(), max_length=4)
    found = short.loglikelihood([("the cat sat on a", " mat .")])[0][0]
    assert found == pytest.approx(by_hand(model, [6, 7, 8], [9, 10])[0], rel=1e-5)


def test_rolling_windows_are_those_of_the_harness():
    assert list(rolling_windows(list(range(10)), -1, 4)) == [
        ([-1], [0, 1, 2, 3]),
        ([3], [4, 5, 6, 7]),
        ([5, 6, 7], [8, 9]),
    ]
    assert list(rolling_windows([], -1, 4)) == []


def test_a_whole_text_counts_each_token_once(model, answers):
    found = answers.rolling("the cat sat")
    assert found == pytest.approx(by_hand(model, [1], [4, 5, 6])[0], rel=1e-5)
    assert answers.rolling("") == 0.0


def test_generation_is_greedy_and_stops(model, answers):
    prompt = tokenize(tiny_tokenizer(), "the cat")[None]
    best = model.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0)
    words = tiny_tokenizer().decode(best[0, 2:], skip_special_tokens=True)
    assert answers.generate("the cat", {"max_gen_toks": 6}) == words
    stop = words.split()[2]
    cut = answers.generate("the cat", {"max_gen_toks": 6, "until": [stop, ""]})
    assert cut == words[: words.index(stop)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda m, t: Answers(m, t, batch_size=0), "batch_size=0"),
        (lambda m, t: Answers(m, t, max_length=1), "max_length=1"),
        (lambda m, t: Answers(m, t).generate("a", {"max_gen_toks": 64}), "max_gen_toks=64 leaves"),
        (lambda m, t: Answers(nn.Linear(2, 2), t, max_length=8).generate("a"), "Linear has no gen"),
    ],
)
def test_what_cannot_be_answered_is_refused(model, make, words):
    with pytest.raises(InvalidValue, match=words):
        make(model, tiny_tokenizer())


def test_a_tokenizer_without_a_beginning_is_refused(model):
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(InvalidValue, match=r"neither a bos_token nor an eos_token"):
        Answers(model, tokenizer)


def test_without_the_harness_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.api.model", None)
    with pytest.raises(MissingDependency, match=r'pip install "sparsecraft\[eval\]"'):
        harness_model(tiny_bert(), tiny_tokenizer())


def test_the_harness_runs_a_task_on_a_sparse_model():
    lm_eval = pytest.importorskip("lm_eval", exc_type=ImportError)
    task = pytest.importorskip("lm_eval.api.task", exc_type=ImportError)
    datasets = pytest.importorskip("datasets", exc_type=ImportError)

    def documents(**_):
        rows = [{"text": "the cat", "ends": [" sat", " mat ."], "label": i % 2} for i in range(4)]
        return {"test": datasets.Dataset.from_list(rows)}

    choice = task.ConfigurableTask(config={
        "task": "endings", "custom_dataset": documents, "test_split": "test",
        "output_type": "multiple_choice", "doc_to_text": "text", "doc_to_choice": "ends",
        "doc_to_target": "label", "target_delimiter": "", "metric_list": [{"metric": "acc"}],
    })  # fmt: skip
    text = task.ConfigurableTask(config={
        "task": "whole", "custom_dataset": documents, "test_split": "test",
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text",
        "metric_list": [{"metric": "word_perplexity"}],
    })  # fmt: skip
    model = tiny_llama()
    sparsecraft.prune(model, "magnitude", sparsity=0.5)
    wrapped = harness_model(model, tiny_tokenizer())
    found = lm_eval.simple_evaluate(model=wrapped, tasks=[choice, text], bootstrap_iters=0)
    assert found["results"]["endings"]["acc,none"] == 0.5
    expected = math.exp(-by_hand(model, [1], [4, 5])[0] / 2)
    assert found["results"]["whole"]["word_perplexity,none"] == pytest.approx(expected, rel=1e-4)
