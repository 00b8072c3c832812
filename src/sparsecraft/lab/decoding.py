"""Greedy decoding of several forms of one model, in turns: tokens each second, and what they say.

A round lets every form write the same number of tokens after the same prompt. The prompt is read
first, in one pass that is timed apart; the rate counts the tokens after that. Each form writes its
full number of tokens, also past an end token, so that all do the same work.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.rounds import Progress, Rounds, check_rounds, order
from sparsecraft.model.units import evaluating

_WARM_UP = 3


@dataclass(frozen=True)
class Decoded:
    """What one form wrote in one round.

    Args:
        ids: int64 (rows, tokens), without the prompt.
        prefill: Seconds for the prompt and the first token.
        rest: Seconds for the other tokens.
    """

    ids: Tensor
    prefill: float
    rest: float

    @property
    def rate(self) -> float:
        """Tokens each second after the first, over all rows."""
        return self.ids.shape[0] * (self.ids.shape[1] - 1) / self.rest


@dataclass(frozen=True)
class Decoding:
    """How one form decodes.

    Args:
        rate: Tokens each second after the first, over all rows.
        prefill: Milliseconds for the prompt and the first token.
        ids: int64 (rows, tokens) what it wrote in the last round.
    """

    rate: Rounds
    prefill: Rounds
    ids: Tensor


@torch.inference_mode()
def greedy(model: nn.Module, prompt: Tensor, tokens: int) -> Decoded:
    """Returns what the model writes greedily, with its times.

    A model that gives no key-value cache reads the whole text again for every token.

    Args:
        model: A causal language model in evaluation mode.
        prompt: int64 (rows, tokens), at least one token.
        tokens: How many to write, at least 2.
    """
    call: Any = model
    begin = time.perf_counter()
    output = call(input_ids=prompt, use_cache=True)
    ids = [output.logits[:, -1].argmax(-1, keepdim=True)]
    ids[-1].cpu()
    middle = time.perf_counter()
    for _ in range(tokens - 1):
        state = getattr(output, "past_key_values", None)
        shown = ids[-1] if state is not None else torch.cat([prompt, *ids], 1)
        output = call(input_ids=shown, past_key_values=state, use_cache=True)
        ids.append(output.logits[:, -1].argmax(-1, keepdim=True))
    written = torch.cat(ids, 1).cpu()
    return Decoded(written, middle - begin, time.perf_counter() - middle)


def decode_in_turns(
    forms: Mapping[str, nn.Module],
    prompt: Tensor,
    tokens: int,
    *,
    rounds: int = 5,
    progress: Progress | None = None,
) -> dict[str, Decoding]:
    """Returns how fast each form decodes, and what it writes.

    Args:
        forms: Name to model.
        prompt: int64 (rows, tokens).
        tokens: How many each writes, at least 2.
        rounds: How often each is timed, at least 3.
        progress: Called with (turns done, turns in all).

    Raises:
        InvalidValue: If the numbers are too small, or prompt and tokens exceed the context.
    """
    check_rounds(rounds)
    for model in forms.values():
        check_fits(model, prompt.shape[-1], tokens)
    found: dict[str, list[Decoded]] = {name: [] for name in forms}
    turns = 0
    for turn in range(rounds + 1):
        for name in order(list(forms), turn):
            with evaluating(forms[name]):
                # The first turn warms up: it allocates, and picks or compiles kernels.
                decoded = greedy(forms[name], prompt, tokens if turn else min(tokens, _WARM_UP))
            if turn:
                found[name].append(decoded)
                turns += 1
                if progress:
                    progress(turns, rounds * len(forms))
    return {name: _summary(each) for name, each in found.items()}


def check_fits(model: nn.Module, prompt: int, tokens: int) -> None:
    """Raises unless prompt and new tokens fit the model's context.

    Raises:
        InvalidValue: With how many tokens would fit.
    """
    limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if prompt < 1:
        raise InvalidValue("the prompt has no tokens; give at least one word")
    if tokens < 2:
        raise InvalidValue(f"tokens={tokens} is too few to time; write at least 2")
    if limit and prompt + tokens > limit:
        room = limit - prompt
        advice = f"ask for at most {room} new ones" if room >= 2 else "give a shorter prompt"
        raise InvalidValue(
            f"a prompt of {prompt} tokens and {tokens} new ones exceed the model's context of "
            f"{limit}; {advice}"
        )


def _summary(turns: list[Decoded]) -> Decoding:
    return Decoding(
        rate=Rounds(tuple(each.rate for each in turns)),
        prefill=Rounds(tuple(1000 * each.prefill for each in turns)),
        ids=turns[-1].ids,
    )
