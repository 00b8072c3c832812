"""The converted model against a plain numpy forward pass with llama2.c's own conventions."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from sparsecraft.core.errors import CheckpointError, InvalidValue
from sparsecraft.lab.tasks import load_task
from sparsecraft.lab.tasks.llama2c import (
    BOS,
    convert_stories260k,
    read_pieces,
    read_tokenizer,
    read_weights,
)
from sparsecraft.lab.tasks.pretrained import load_model


def normed(x, weight):
    return weight * x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)


def rotated(x, heads):
    """Turns each pair (2i, 2i + 1) of a head at position t by t / 10000^(2i / head size)."""
    length, size = x.shape
    pairs = x.reshape(length, heads, size // heads // 2, 2)
    frequency = 10000.0 ** (-2 * np.arange(pairs.shape[2]) / (size // heads))
    angle = np.arange(length)[:, None, None] * frequency
    first, second = pairs[..., 0], pairs[..., 1]
    turned = (
        first * np.cos(angle) - second * np.sin(angle),
        first * np.sin(angle) + second * np.cos(angle),
    )
    return np.stack(turned, -1).reshape(length, heads, size // heads)


def numpy_logits(path, ids):
    header, w = read_weights(path)
    w = {name: array.astype(np.float64) for name, array in w.items()}
    x = w["embedding"][ids]
    future = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for layer in range(header.layers):
        h = normed(x, w["attention_norm"][layer])
        q = rotated(h @ w["q"][layer].T, header.heads)
        k = rotated(h @ w["k"][layer].T, header.kv_heads)
        v = (h @ w["v"][layer].T).reshape(len(ids), header.kv_heads, -1)
        mixed = []
        for head in range(header.heads):
            shared = head * header.kv_heads // header.heads
            scores = q[:, head] @ k[:, shared].T / np.sqrt(header.head_size) + future
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            mixed.append(weights / weights.sum(-1, keepdims=True) @ v[:, shared])
        x = x + np.concatenate(mixed, -1) @ w["o"][layer].T
        h = normed(x, w["mlp_norm"][layer])
        gate = h @ w["gate"][layer].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["up"][layer].T)) @ w["down"][layer].T
    return normed(x, w["norm"]) @ w.get("classifier", w["embedding"]).T


def greedy_encode(text, pieces):
    """llama2.c's encoder: characters first, then always the pair that scores best."""
    ids = {piece.decode(): index for index, (piece, _) in enumerate(pieces)}
    tokens = []
    for character in " " + text:
        known = ids.get(character)
        tokens += [known] if known is not None else [byte + 3 for byte in character.encode()]
    while True:
        texts = [pieces[token][0].decode() for token in tokens]
        joined = [ids.get(a + b) for a, b in pairwise(texts)]
        found = [(pieces[j][1], -at) for at, j in enumerate(joined) if j is not None]
        if not found:
            return tokens
        at = -max(found)[1]
        tokens[at : at + 2] = [joined[at]]


@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_those_of_llama2c(write_llama2c, tmp_path, tied):
    write_llama2c(tmp_path, tied=tied)
    binary = tmp_path / "stories260K.bin"
    folder = convert_stories260k(binary, tmp_path / "tok512.bin", tmp_path / "out")
    model = load_model(folder, "causal-lm")
    ids = np.random.default_rng(2).integers(0, 290, 20)
    with torch.inference_mode():
        found = model(torch.from_numpy(ids)[None]).logits[0].double().numpy()
    expected = numpy_logits(binary, ids)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert (folder / "model.safetensors").is_file()
    same = model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert same == tied


@pytest.mark.parametrize("text", ["the hand and then", "a man in the inn", "Éa the!", "", "  the"])
def test_tokenizer_merges_as_llama2c_does(write_llama2c, tmp_path, text):
    write_llama2c(tmp_path, tied=True)
    pieces = read_pieces(tmp_path / "tok512.bin", 296)
    tokenizer = read_tokenizer(tmp_path / "tok512.bin", 296)
    ids = tokenizer.encode(text)
    assert ids == (greedy_encode(text, pieces) if text else [])
    assert tokenizer.decode(ids) == text


def test_truncated_model_is_refused_with_both_sizes(write_llama2c, tmp_path):
    write_llama2c(tmp_path, tied=True)
    binary = tmp_path / "stories260K.bin"
    data = binary.read_bytes()
    binary.write_bytes(data[:-4])
    with pytest.raises(CheckpointError, match=rf"{len(data) - 4} bytes.*asks for {len(data)}"):
        read_weights(binary)
    binary.write_bytes(b"\x07" * 64)
    with pytest.raises(CheckpointError, match=r"not a llama2\.c model"):
        read_weights(binary)


@pytest.mark.parametrize("vocabulary", [10, 297])
def test_tokenizer_of_another_size_is_refused(write_llama2c, tmp_path, vocabulary):
    write_llama2c(tmp_path, tied=True)
    with pytest.raises(CheckpointError, match=str(vocabulary)):
        read_pieces(tmp_path / "tok512.bin", vocabulary)


def test_without_data_the_message_says_what_to_set(monkeypatch, tmp_path):
    monkeypatch.delenv("SPARSECRAFT_DATA", raising=False)
    with pytest.raises(InvalidValue, match=r"SPARSECRAFT_DATA.*stories260k/"):
        load_task("stories260k")
    monkeypatch.setenv("SPARSECRAFT_DATA", str(tmp_path))
    with pytest.raises(InvalidValue, match="not there"):
        load_task("stories260k")


def test_real_model_tells_a_story_that_it_finds_likely(data_dir):
    task = load_task(
        "stories260k", context=64, training_windows=8, validation_windows=8, test_windows=16
    )
    model = task.load_model()
    binary = data_dir / "stories260k" / "stories260K.bin"
    start = torch.tensor([[BOS]])
    with torch.inference_mode():
        greedy = model.generate(start, max_new_tokens=40, do_sample=False, eos_token_id=None)
        logits = model(greedy).logits[0].numpy()
    assert task.tokenizer.decode(greedy[0, 1:]).startswith("Once upon a time, there was a little")
    assert np.abs(logits - numpy_logits(binary, greedy[0].numpy())).max() < 1e-4 * 20
    assert 1 < task.evaluate(model, "test").metric < 8
    pieces = read_pieces(data_dir / "stories260k" / "tok512.bin", 512)
    text = "Tom and Lily didn't see the café; they were sad."
    assert task.tokenizer.encode(text) == greedy_encode(text, pieces)
