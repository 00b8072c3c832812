"""Activations of real models for the claims on codes, harvested once and kept in the cache.

The sources are four models that fit a processor: the encoder all-MiniLM-L6-v2 on the documentation
in the Python standard library, a pretrained storyteller of 260 thousand weights on its own stories,
and two models that the lab trains on the library's source: a Llama on byte pairs, a decoder on
bytes. Those that predict tokens give gradients, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache as remember
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.lab.claims import source_bytes
from sparsecraft.lab.tasks import cache, pretrained
from sparsecraft.lab.tasks.docs_retrieval import minilm_directory
from sparsecraft.lab.tasks.language import CausalTask
from sparsecraft.lab.tasks.stdlib_docs import docstrings, order, reference_paragraphs
from sparsecraft.lab.tasks.stdlib_lm import StdlibLanguageModel
from sparsecraft.lab.tasks.stories import Stories260k
from sparsecraft.model.activation_store import ActivationStore
from sparsecraft.model.activation_store.recorder import next_token_loss
from sparsecraft.model.activation_store.settings import model_facts
from sparsecraft.model.digests import digest

BYTE_LAYERS, BYTE_WIDTH, BYTE_STEPS, BYTE_RATE = 2, 128, 400, 2e-3


@dataclass(frozen=True)
class Source:
    """A model, a place in it, and what it reads.

    Args:
        model: Makes the model, in evaluation mode.
        at: The hook point.
        reading: Gives what the store is told of the text: texts, tokens or batches, tokenizer.
        causal: Whether it predicts tokens, so that there are gradients.
    """

    model: Callable[[], nn.Module]
    at: str
    reading: Callable[[], dict[str, Any]]
    causal: bool = True


def activations(source: str, rows: int, *, gradients: bool = False) -> ActivationStore:
    """Returns activations of a source, from the cache where they are there.

    Args:
        source: "minilm", "stories260k", "stdlib-lm" or "source-bytes".
        rows: So many.
        gradients: Whether each comes with the gradient of the summed next-token loss.

    Raises:
        UnknownName: If there is no such source.
        InvalidValue: If it has fewer rows, or no gradients.
    """
    found = _source(source)
    if gradients and not found.causal:
        raise InvalidValue(f"{source} is an encoder: it predicts no tokens, so has no gradients")
    model, reading = model_of(source), _reading(source)
    settings = {"format": 1, "source": source, "at": found.at, "rows": rows, "grads": gradients}
    mark = cache.fingerprint(settings, model_facts(model)["model_digest"], _text_digest(source))

    def build(folder: Path) -> None:
        store = ActivationStore(
            model, at=found.at, rows=rows, gradients=gradients, path=folder, **reading
        )
        if len(store) < rows:
            raise InvalidValue(f"{source} has {len(store)} activations, fewer than {rows}")

    return ActivationStore.open(cache.cached(f"activations-{source}-{mark}", build))


@remember
def model_of(source: str) -> nn.Module:
    """Returns the model of a source, always the same one; leave it as it is.

    Raises:
        UnknownName: If there is no such source.
    """
    return _source(source).model()


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise UnknownName("source of activations", name, SOURCES)
    return SOURCES[name]


@remember
def _reading(source: str) -> dict[str, Any]:
    return _source(source).reading()


@remember
def _text_digest(source: str) -> str:
    reading = _reading(source)
    return digest(
        (name, reading[name]) for name in ("texts", "tokens", "batches") if name in reading
    )


def _minilm() -> nn.Module:
    return pretrained.load_model(minilm_directory(), "embedding")


def _documentation() -> dict[str, Any]:
    """Returns the library's docstrings and reference, in an order that mixes the modules."""
    found = dict.fromkeys([*(doc.text for doc in docstrings()), *reference_paragraphs()])
    texts = sorted((text for text in found if text.strip()), key=order)
    return {"texts": texts, "tokenizer": pretrained.load_tokenizer(minilm_directory())}


@remember
def _stories() -> CausalTask:
    return Stories260k()


@remember
def _library() -> CausalTask:
    return StdlibLanguageModel()


def _windows(task: Callable[[], CausalTask]) -> dict[str, Any]:
    made: Any = task()
    return {"tokens": made.windows["training"], "tokenizer": made.tokenizer}


def _bytes() -> dict[str, Any]:
    windows = source_bytes.cut(source_bytes.load_source(0).train, source_bytes.CONTEXT)
    mixed = torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))
    return {
        "batches": list(windows[mixed].split(32)),
        "loss": next_token_loss,
        "skip_special": (),  # no byte is special
    }


def _byte_model() -> nn.Module:
    """Returns a decoder on bytes; where it is not in the cache, training takes 40 seconds."""
    data = source_bytes.load_source(0).train
    settings = [BYTE_LAYERS, BYTE_WIDTH, BYTE_STEPS, BYTE_RATE]
    mark = cache.fingerprint(settings, data.to(torch.uint8).numpy().tobytes())
    model = source_bytes.byte_model(BYTE_LAYERS, BYTE_WIDTH, 0)

    def build(folder: Path) -> None:
        source_bytes.train(model, data, seed=0, steps=BYTE_STEPS, rate=BYTE_RATE)
        weights: dict[str, Tensor] = dict(model.state_dict())
        save_file(weights, folder / "model.safetensors")

    folder = cache.cached(f"source-bytes-decoder-{mark}", build)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


SOURCES: dict[str, Source] = {
    "minilm": Source(_minilm, "encoder.layer.3.output", _documentation, causal=False),
    "stories260k": Source(
        lambda: _stories().load_model(), "blocks.2.hook_resid_post", lambda: _windows(_stories)
    ),
    "stdlib-lm": Source(
        lambda: _library().load_model(), "blocks.1.hook_resid_post", lambda: _windows(_library)
    ),
    "source-bytes": Source(_byte_model, "blocks.0", _bytes),
}
