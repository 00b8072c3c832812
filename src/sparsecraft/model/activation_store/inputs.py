"""What the model reads: packed windows of texts, token ids, or batches that the caller made."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue, MissingDependency
from sparsecraft.model.activation_store.settings import CONTEXT, HarvestSettings
from sparsecraft.model.activation_store.special_tokens import (
    begins_with_bos,
    padding_token,
    special_ids,
)
from sparsecraft.model.calibration_text import bare_ids, frame, read_text
from sparsecraft.model.digests import digest

PIECE = 2**20
"""Characters that are tokenized at once; longer texts are cut at a line's end."""


@dataclass(frozen=True)
class Inputs:
    """One batch.

    Args:
        call: What the model is called with.
        tokens: int64 (contexts, tokens), or None.
        real: bool (contexts, tokens), False on padding, or None.
        texts: The text in which each context begins, counted from 0; empty where unknown.
    """

    call: Mapping[str, Any] | Tensor
    tokens: Tensor | None = None
    real: Tensor | None = None
    texts: tuple[int, ...] = ()

    def update(self, made: hashlib.blake2b) -> None:
        """Adds the batch to a hash."""
        call = {"": self.call} if isinstance(self.call, Tensor) else self.call
        made.update(digest((name, call[name]) for name in sorted(call)).encode())


@dataclass
class Source:
    """The batches, one after another.

    Args:
        batches: Made as they are asked for.
        expected: Contexts in all, about, or None where it is not known.
        tokenizer: That made the tokens, or None.
        special: Ids of the special tokens to leave out.
        begins_with_bos: Whether each context does; None where it is not known.
        by_name: Whether the model takes `input_ids` by that name, as Hugging Face's do.
        remarks: For the report.
    """

    batches: Iterator[Inputs]
    expected: int | None = None
    tokenizer: Any = None
    special: tuple[int, ...] = ()
    begins_with_bos: bool | None = None
    by_name: bool = True
    remarks: list[str] = field(default_factory=list)


def source_of(model: nn.Module, settings: HarvestSettings) -> Source:
    """Returns the batches that the settings describe.

    Raises:
        InvalidValue: If the text does not fill a context, or the model reads shorter ones.
    """
    source = Source(iter(()), by_name=hasattr(model, "config"))
    if settings.texts is not None:
        source.tokenizer = settings.tokenizer or _tokenizer_of(model)
        _check_length(model, settings.length or CONTEXT)
        around = _frame(source.tokenizer, settings.prepend_bos)
        source.begins_with_bos = begins_with_bos(source.tokenizer, torch.tensor([around[0]]))
        source.batches = _windows(source, settings, *around)
    elif settings.tokens is not None:
        source.tokenizer = settings.tokenizer
        source.begins_with_bos = begins_with_bos(source.tokenizer, settings.tokens)
        padding, remark = padding_token(source.tokenizer, settings.tokens)
        source.remarks += [] if remark is None else [remark]
        source.batches = _token_batches(source, settings.tokens, settings.batch_size, padding)
    else:
        source.batches = _given_batches(source, settings.batches or ())
        source.tokenizer = settings.tokenizer
    source.special = _special_ids(source, settings)
    return source


def _special_ids(source: Source, settings: HarvestSettings) -> tuple[int, ...]:
    if not isinstance(settings.skip_special, bool):
        return tuple(sorted(int(token) for token in settings.skip_special))
    if not settings.skip_special:
        return ()
    if source.tokenizer is None:
        source.remarks.append(
            "without a tokenizer it is not known which tokens are special: none was left out "
            "(give tokenizer=, or their ids as skip_special=)"
        )
        return ()
    return special_ids(source.tokenizer)


def _windows(
    source: Source, settings: HarvestSettings, prefix: list[int], suffix: list[int]
) -> Iterator[Inputs]:
    """Yields batches of full windows; what is left over at the end is dropped."""
    context = settings.length or CONTEXT
    room = context - len(prefix) - len(suffix)
    if room < 1:
        raise InvalidValue(
            f"context={context} has no room beside {len(prefix) + len(suffix)} special "
            "tokens: give a longer one"
        )
    windows: list[list[int]] = []
    begins: list[int] = []
    ids: list[int] = []
    owners: list[int] = []  # the text of each id
    found = 0
    for text, tokens, share in _tokenized(source, settings.texts):
        ids += tokens
        owners += [text] * len(tokens)
        full = len(ids) // room
        windows += [[*prefix, *ids[i * room : (i + 1) * room], *suffix] for i in range(full)]
        begins += owners[: full * room : room]
        del ids[: full * room], owners[: full * room]
        found += full
        source.expected = round(found / share) if share else None
        while len(windows) >= settings.batch_size:
            yield _window_batch(source, windows, begins, settings.batch_size)
    if windows:
        yield _window_batch(source, windows, begins, len(windows))
    if not found:
        raise InvalidValue(
            f"the text has {len(ids)} tokens, too few for one context of {room} beside special "
            "tokens: give more text, or a smaller context"
        )


def _window_batch(
    source: Source, windows: list[list[int]], begins: list[int], count: int
) -> Inputs:
    ids = torch.tensor(windows[:count], dtype=torch.int64)
    texts = tuple(begins[:count])
    del windows[:count], begins[:count]
    call = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    real = torch.ones_like(ids, dtype=torch.bool)
    return Inputs(call if source.by_name else ids, ids, real, texts)


def _tokenized(source: Source, texts: Any) -> Iterator[tuple[int, list[int], float]]:
    """Yields (text, ids, share read, 0 if unknown) of each piece, and separators between texts."""
    if isinstance(texts, str | Path):
        texts = [_file(texts)]
    characters = 0
    if isinstance(texts, Sequence):
        characters = sum(len(text) for text in texts if isinstance(text, str))
    read = 0
    share = 0.0
    separator = _separator(source.tokenizer)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidValue(f"text {number} is of type {type(text).__name__}: give strings")
        for piece in _pieces(text):
            read += len(piece)
            share = read / characters if characters else 0.0
            yield number, bare_ids(source.tokenizer, piece), share
        yield number, separator, share


def _file(path: str | Path) -> str:
    if isinstance(path, str) and ("\n" in path or not Path(path).is_file()):
        raise InvalidValue(
            f"texts={path[:40]!r} is one string and no file: give a list of texts, or a file's path"
        )
    return read_text(path)


def _pieces(text: str) -> Iterator[str]:
    first = 0
    while first < len(text):
        end = first + PIECE
        if end < len(text):
            line = text.rfind("\n", first + 1, end)
            end = end if line < 0 else line + 1
        yield text[first:end]
        first = end


def _separator(tokenizer: Any) -> list[int]:
    found = [getattr(tokenizer, f"{name}_token_id", None) for name in ("eos", "sep")]
    return [token for token in found if token is not None][:1]


def _frame(tokenizer: Any, prepend_bos: bool | None) -> tuple[list[int], list[int]]:
    """Returns the special tokens before and after each window."""
    prefix, suffix = frame(tokenizer)
    bos = getattr(tokenizer, "bos_token_id", None)
    if prepend_bos is None or (prepend_bos and prefix[:1] == [bos]):
        return prefix, suffix
    if not prepend_bos:
        return [token for token in prefix if token != bos], suffix
    if bos is None:
        raise InvalidValue("prepend_bos=True: the tokenizer has no BOS token")
    return [bos, *prefix], suffix


def _token_batches(
    source: Source, tokens: Tensor, size: int, padding: int | None
) -> Iterator[Inputs]:
    source.expected = len(tokens)
    for first in range(0, len(tokens), size):
        ids = tokens[first : first + size].long()
        real = None if padding is None else ids != padding
        call = {"input_ids": ids}
        if real is not None and not bool(real.all()):
            call["attention_mask"] = real.long()
        yield Inputs(call if source.by_name else ids, ids, None if real is None else real.cpu())


def _given_batches(source: Source, batches: Iterable[Any]) -> Iterator[Inputs]:
    for number, batch in enumerate(batches):
        if isinstance(batch, Tensor):
            whole = not batch.is_floating_point() and batch.dim() == 2
            yield Inputs(batch, batch.long() if whole else None)
        elif isinstance(batch, Mapping):
            call = {name: value for name, value in batch.items() if name != "labels"}
            yield Inputs(call, _of_two(call, "input_ids"), _real(call))
        else:
            raise InvalidValue(
                f"batch {number} is of type {type(batch).__name__}: give tensors, or mappings of "
                "the model's keyword arguments"
            )


def _of_two(call: Mapping[str, Any], name: str) -> Tensor | None:
    found = call.get(name)
    return found.long() if isinstance(found, Tensor) and found.dim() == 2 else None


def _real(call: Mapping[str, Any]) -> Tensor | None:
    mask = _of_two(call, "attention_mask")
    return None if mask is None else mask.bool().cpu()


def _tokenizer_of(model: nn.Module) -> Any:
    """Returns the tokenizer of the model's directory or hub id."""
    name = getattr(getattr(model, "config", None), "name_or_path", "") or ""
    if not name:
        raise InvalidValue("the model has no name_or_path, so its tokenizer is needed: tokenizer=")
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise MissingDependency("transformers", "hf", "Loading a tokenizer") from error
    local = {"local_files_only": True} if Path(name).is_dir() else {}
    try:
        return AutoTokenizer.from_pretrained(name, **local)
    except (OSError, ValueError) as error:
        raise InvalidValue(f"no tokenizer was found at {name}: give tokenizer=") from error


def _check_length(model: nn.Module, context: int) -> None:
    config = getattr(model, "config", None)
    limits = (getattr(config, key, None) for key in ("max_position_embeddings", "n_positions"))
    longest = min((limit for limit in limits if limit), default=math.inf)
    if context > longest:
        raise InvalidValue(
            f"context={context} is longer than the {longest} tokens that the model reads"
        )
