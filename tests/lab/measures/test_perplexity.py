"""The protocol by hand: joined once, cut, the rest dropped, windows that count alike."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models import tiny_gpt2, tiny_llama, tiny_tokenizer
from torch import nn

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.lab.measures import perplexity as module
from sparsecraft.lab.measures.perplexity import (
    context_length,
    cut,
    divergence,
    perplexity,
    score_windows,
    tokenize,
    windows_of,
)


class Bigram(nn.Module):
    """Gives logits that depend on the last token only, and remembers what it was shown."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, input_ids):
        self.seen.append(tuple(input_ids.shape))
        return self.table[input_ids]


def _bigram(vocabulary: int = 5) -> Bigram:
    return Bigram(torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("window", [2, 3, 7])
def test_by_hand(window):
    model = _bigram()
    ids = [0, 3, 1, 4, 4, 2, 0, 1, 3, 2, 2, 1, 0, 4, 1, 3]
    chances = model.table.detach().double().log_softmax(1)
    each = []
    for start in range(0, len(ids) - window + 1, window):
        part = ids[start : start + window]
        each.append(-sum(float(chances[a, b]) for a, b in pairwise(part)) / (window - 1))
    assert len(each) == len(ids) // window
    assert perplexity(model, ids, window) == pytest.approx(math.exp(np.mean(each)), rel=1e-6)
    found = score_windows(model, windows_of(ids, window)).losses
    np.testing.assert_allclose(found, each, rtol=1e-6)


def test_the_published_weighting_is_that_of_equal_windows():
    """The formula sums loss * window over windows and divides by windows * window."""
    model, windows = _bigram(), torch.randint(5, (6, 8), generator=torch.Generator().manual_seed(1))
    losses = score_windows(model, windows).losses
    published = math.exp((losses * 8).sum() / (len(losses) * 8))
    assert perplexity(model, windows.flatten(), 8) == pytest.approx(published, rel=1e-12)


def test_windows_are_scored_without_knowing_the_one_before():
    model = tiny_llama()
    ids = torch.randint(3, 64, (48,), generator=torch.Generator().manual_seed(2))
    apart = [score_windows(model, part[None]).losses[0] for part in ids.split(16)]
    np.testing.assert_allclose(score_windows(model, ids.view(3, 16)).losses, apart, rtol=1e-5)


@given(st.integers(2, 40), st.integers(0, 200))
def test_windows_hold_the_text_in_order_but_for_the_rest(window, tokens):
    ids = list(range(tokens))
    found = cut(ids, window)
    assert found.shape == (tokens // window, window)
    assert found.flatten().tolist() == ids[: tokens // window * window]


def test_parts_are_joined_by_blank_lines_and_tokenised_once():
    class Letters:
        """Says how often it was called, and sets a token before each text."""

        calls = 0

        def __call__(self, text, **options):
            self.calls += 1
            return {"input_ids": [1, *map(ord, text)]}

    letters = Letters()
    assert tokenize(letters, ["ab", "", "c"]).tolist() == [1, *map(ord, "ab\n\n\n\nc")]
    assert letters.calls == 1
    assert tokenize(tiny_tokenizer(), "the cat").tolist() == [4, 5]


def test_default_window_is_the_context_but_at_most_that_of_the_papers():
    assert context_length(tiny_llama()) == 64
    assert context_length(tiny_gpt2()) == 64
    assert context_length(tiny_llama(max_position_embeddings=4096)) == 2048
    model, ids = tiny_llama(), list(range(3, 63)) * 3
    assert perplexity(model, ids) == perplexity(model, ids, 64)
    with pytest.raises(InvalidValue, match=r"does not say how many tokens.*give the window"):
        perplexity(_bigram(), [0] * 8)


@pytest.mark.parametrize(
    ("ids", "window", "words"),
    [
        ([1] * 7, 8, "the text has 7 tokens, fewer than one window of 8"),
        ([], 2, "has 0 tokens"),
        ([1] * 7, 1, "window=1 .*at least 2"),
        (torch.ones(2, 4), 2, r"shape \(2, 4\).*\(tokens,\)"),
    ],
)
def test_what_cannot_be_cut_is_refused(ids, window, words):
    with pytest.raises(InvalidValue, match=words):
        perplexity(_bigram(), ids, window)


def test_a_broken_model_is_named_and_a_certain_wrong_guess_is_infinite():
    broken = Bigram(torch.full((5, 5), math.nan))
    with pytest.raises(NonFinite, match="loss of 2 of 2 windows is not a number"):
        perplexity(broken, [0, 1, 2, 3], 2)
    sure = Bigram(torch.where(torch.eye(5).bool(), 0.0, -torch.inf))
    assert perplexity(sure, [0, 0, 1, 2], 2) == math.inf


def test_divergence_by_hand():
    dense = torch.log(torch.tensor([[[0.5, 0.5]]]))
    other = torch.log(torch.tensor([[[0.25, 0.75]]]))
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert float(divergence(dense, other)) == pytest.approx(expected, rel=1e-6)


def test_divergence_from_dense_is_that_of_the_same_tokens():
    model, dense = _bigram(), Bigram(torch.zeros(5, 5))
    windows = torch.tensor([[0, 1, 2], [3, 4, 0]])
    found = score_windows(model, windows, dense=dense)
    apart = divergence(torch.zeros(5, 5), model.table.detach())
    expected = [float(apart[row[:-1]].double().mean()) for row in windows]
    np.testing.assert_allclose(found.divergences, expected, rtol=1e-6)
    assert found.kl == pytest.approx(np.mean(expected), rel=1e-6)
    assert score_windows(model, windows).kl is None
    assert score_windows(model, windows, dense=model).kl == 0


def test_memory_does_not_grow_with_the_text(monkeypatch):
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 32)
    monkeypatch.setattr(module, "POSITIONS_AT_ONCE", 3)
    model = _bigram()
    windows = torch.randint(5, (13, 8), generator=torch.Generator().manual_seed(3))
    told = []
    found = score_windows(model, windows, progress=lambda *done: told.append(done))
    assert model.seen == [(4, 8), (4, 8), (4, 8), (1, 8)]
    assert told == [(4, 13), (8, 13), (12, 13), (13, 13)]
    monkeypatch.undo()
    np.testing.assert_allclose(found.losses, score_windows(model, windows).losses, rtol=1e-6)


def test_the_model_is_left_as_it_was():
    model = tiny_llama().train()
    model.model.layers[0].eval()
    before = [each.training for each in model.modules()]
    score_windows(model, torch.ones(1, 8, dtype=torch.long))
    assert [each.training for each in model.modules()] == before
