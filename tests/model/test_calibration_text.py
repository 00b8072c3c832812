"""Text cut into full windows by the model's own tokenizer."""

from __future__ import annotations

import re

import pytest
import torch
from tests.models import tiny_tokenizer

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.calibration_text import ROWS, read_text, tokenize_text

SENTENCE = "the cat sat on a mat . "  # 7 tokens


def _framed():
    """The tiny tokenizer, setting <s> before and </s> after every text."""
    from tokenizers.processors import TemplateProcessing

    made = tiny_tokenizer()
    made.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return made


def test_windows_are_full_and_in_order():
    batches = tokenize_text(tiny_tokenizer(), SENTENCE * 20, window=10, max_tokens=1000)
    ids = torch.cat([batch["input_ids"] for batch in batches])
    assert ids.shape == (14, 10)
    assert ids.flatten().tolist() == tiny_tokenizer()(SENTENCE * 20)["input_ids"]
    assert [len(batch["input_ids"]) for batch in batches] == [ROWS, 14 - ROWS]
    assert all(batch["attention_mask"].all() for batch in batches)


def test_every_window_has_the_special_tokens():
    (batch,) = tokenize_text(_framed(), SENTENCE * 4, window=9, max_tokens=1000)
    assert batch["input_ids"].tolist() == [[1, 4, 5, 6, 7, 8, 9, 10, 2]] * 4


@pytest.mark.parametrize(("most", "windows"), [(10, 1), (19, 1), (20, 2), (99, 9)])
def test_max_tokens_holds(most, windows):
    batches = tokenize_text(tiny_tokenizer(), SENTENCE * 100, window=10, max_tokens=most)
    assert sum(len(batch["input_ids"]) for batch in batches) == windows


def test_short_text_says_how_many_characters_are_needed():
    with pytest.raises(InvalidValue, match="give at least") as caught:
        tokenize_text(tiny_tokenizer(), SENTENCE, window=20, max_tokens=100)
    needed = int(re.search(r"at least (\d+) characters", str(caught.value))[1])
    assert needed > len(SENTENCE)
    long_enough = SENTENCE * (needed // len(SENTENCE) + 1)
    assert tokenize_text(tiny_tokenizer(), long_enough, window=20, max_tokens=100)


def test_window_without_room():
    with pytest.raises(InvalidValue, match="2 special tokens"):
        tokenize_text(_framed(), SENTENCE, window=2, max_tokens=100)
    with pytest.raises(InvalidValue, match="at most max_tokens"):
        tokenize_text(tiny_tokenizer(), SENTENCE, window=10, max_tokens=9)


def test_text_that_cannot_be_read(tmp_path):
    binary = tmp_path / "binary"
    binary.write_bytes(b"abc\xff")
    with pytest.raises(InvalidValue, match="byte 3"):
        read_text(binary)
    with pytest.raises(InvalidValue, match="cannot be read"):
        read_text(tmp_path / "none")
