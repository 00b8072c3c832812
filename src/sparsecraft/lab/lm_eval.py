"""The language model evaluation harness on any model of this library, by a model class of our own.

`harness_model` wraps a plain, gated or packed causal language model for the package `lm-eval` (the
extra `eval`), whose tasks then see it as any other. The harness's own wrapper pads requests to a
common length; here only requests of the same length share a batch and nothing is padded, because
a gate that spares the start of a sequence would count the padding.

Reference:
    Gao et al., The Language Model Evaluation Harness, https://github.com/EleutherAI/lm-evaluation-harness.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue, MissingDependency
from sparsecraft.lab.measures.perplexity import context_length, logits_of
from sparsecraft.model.units import evaluating

Pair = tuple[list[int], list[int]]
"""Token ids of a context, at least one, and of its continuation."""
LONGEST_ANSWER = 256
"""Tokens that are generated where a task does not say how many."""
_SAMPLING = ("do_sample", "temperature", "top_k", "top_p")


def harness_model(
    model: nn.Module,
    tokenizer: Any,
    *,
    batch_size: int = 8,
    max_length: int | None = None,
    add_bos: bool = False,
) -> Any:
    """Returns the model as an `lm_eval.api.model.LM`, for `lm_eval.simple_evaluate(model=...)`.

    Args:
        model: A causal language model; plain, gated or packed.
        tokenizer: The Hugging Face tokenizer that belongs to it.
        batch_size: Requests of equal length that are scored together.
        max_length: Tokens that the model sees at once; its context length by default, at most
            2048. Longer contexts lose their beginning.
        add_bos: Whether the tokenizer's first token is set before every context; before an empty
            one it, or the end token, always is.

    Raises:
        MissingDependency: If lm-eval is not installed.
        InvalidValue: If the tokenizer has neither a first nor an end token, or a number is not
            positive.
    """
    try:
        from lm_eval.api.model import LM
    except ImportError as error:
        raise MissingDependency("lm-eval", "eval", "The evaluation harness") from error
    answers = Answers(
        model, tokenizer, batch_size=batch_size, max_length=max_length, add_bos=add_bos
    )

    class SparsecraftLM(LM):
        """Answers the harness's three kinds of request."""

        tokenizer_name = getattr(tokenizer, "name_or_path", "")

        def loglikelihood(
            self, requests: Sequence[Any], disable_tqdm: bool = False
        ) -> list[tuple[float, bool]]:
            """Returns (log-likelihood, greedy) of each (context, continuation)."""
            found = answers.loglikelihood([request.args for request in requests])
            return self._kept("loglikelihood", requests, found)

        def loglikelihood_rolling(
            self, requests: Sequence[Any], disable_tqdm: bool = False
        ) -> list[float]:
            """Returns the log-likelihood of each whole text."""
            found = [answers.rolling(request.args[0]) for request in requests]
            return self._kept("loglikelihood_rolling", requests, found)

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            """Returns what the model writes after each context."""
            found = [answers.generate(*request.args) for request in requests]
            return self._kept("generate_until", requests, found)

        def _kept(self, kind: str, requests: Sequence[Any], found: list[Any]) -> list[Any]:
            """Returns the answers, given to the harness's cache where it has one."""
            for request, answer in zip(requests, found, strict=True):
                self.cache_hook.add_partial(kind, request.args, answer)
            return found

    return SparsecraftLM()


class Answers:
    """What a model answers to the harness's requests; needs no harness.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        batch_size: Requests of equal length that are scored together.
        max_length: Tokens that the model sees at once, or None for its context length.
        add_bos: Whether the tokenizer's first token is set before every context.

    Raises:
        InvalidValue: If the tokenizer has neither a first nor an end token, or a number is not
            positive.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        batch_size: int = 8,
        max_length: int | None = None,
        add_bos: bool = False,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.length = context_length(model) if max_length is None else max_length
        first = getattr(tokenizer, "bos_token_id", None)
        prefix = getattr(tokenizer, "eos_token_id", None) if first is None else first
        if prefix is None:
            raise InvalidValue(
                "the tokenizer has neither a bos_token nor an eos_token, so an empty context has "
                "nothing to begin with; set tokenizer.bos_token"
            )
        if batch_size < 1 or self.length < 2:
            raise InvalidValue(
                f"batch_size={batch_size}, max_length={self.length}: give at least 1 and 2"
            )
        self.prefix = int(prefix)
        self.before: list[int] = [self.prefix] if add_bos else []

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """Returns (log-likelihood in nats, whether it is the greedy continuation) of each pair.

        Args:
            requests: (context, continuation); an empty context stands for the first token.
        """
        return self._score([self._pair(*request) for request in requests])

    def rolling(self, text: str) -> float:
        """Returns the log-likelihood of a whole text in nats, with as much context as fits."""
        ids = self._ids(text)
        windows = list(rolling_windows(ids, self.prefix, self.length))
        return sum(value for value, _ in self._score(windows))

    @torch.inference_mode()
    def generate(self, context: str, options: Mapping[str, Any] | None = None) -> str:
        """Returns what the model writes after the context, up to where it is told to stop.

        Args:
            context: The prompt.
            options: "until" (a text or several, not returned), "max_gen_toks", and for sampling
                "do_sample" with "temperature", "top_k", "top_p"; greedy by default.

        Raises:
            InvalidValue: If the model cannot generate, or nothing of the context would fit.
        """
        if not hasattr(self.model, "generate"):
            raise InvalidValue(
                f"a {type(self.model).__name__} has no generate(); tasks that let it write need a "
                "Hugging Face causal language model"
            )
        options = dict(options or {})
        tokens = int(options.get("max_gen_toks", LONGEST_ANSWER))
        room = self.length - tokens
        if room < 1:
            raise InvalidValue(
                f"max_gen_toks={tokens} leaves no room for a context: the model sees "
                f"{self.length} tokens. Give fewer, for example gen_kwargs='max_gen_toks=64'."
            )
        context_ids = [*self.before, *self._ids(context)] or [self.prefix]
        stops = stop_strings(options.get("until"))
        shown = self._tensor([context_ids[-room:]])
        generate: Any = self.model.generate

        def stopped(ids: Tensor, scores: Any, **_: Any) -> Tensor:
            text = self._written(ids, shown)
            return torch.tensor([any(stop in text for stop in stops)], device=ids.device)

        with evaluating(self.model):
            ids = generate(
                shown,
                attention_mask=torch.ones_like(shown),
                max_new_tokens=tokens,
                pad_token_id=self.prefix,
                stopping_criteria=[stopped],
                **_sampling(options),
            )
        return until_first(self._written(ids, shown), stops)

    def _written(self, ids: Tensor, shown: Tensor) -> str:
        return self.tokenizer.decode(ids[0, shown.shape[1] :], skip_special_tokens=True)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _pair(self, context: str, continuation: str) -> Pair:
        """Returns the ids of both; spaces between them belong to the continuation."""
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        if not bare:
            return [self.prefix], self._ids(continuation)
        start = self._ids(bare)
        # Encoded together: a token may reach across, and then belongs to the continuation.
        whole = self._ids(bare + continuation)
        return [*self.before, *start], whole[len(start) :]

    @torch.inference_mode()
    def _score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        by_length: dict[int, list[int]] = defaultdict(list)
        cropped = [_cropped(pair, self.length) for pair in pairs]
        for index, (context, continuation) in enumerate(cropped):
            by_length[len(context) + len(continuation)].append(index)
        found: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        with evaluating(self.model):
            for members in by_length.values():
                for start in range(0, len(members), self.batch_size):
                    batch = members[start : start + self.batch_size]
                    answers = self._batch([cropped[index] for index in batch])
                    for index, answer in zip(batch, answers, strict=True):
                        found[index] = answer
        return found

    def _batch(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        ids = self._tensor([[*context, *continuation] for context, continuation in pairs])
        logits = logits_of(self.model, ids[:, :-1])
        answers = []
        for row, wanted, (_, continuation) in zip(logits, ids, pairs, strict=True):
            count = len(continuation)
            last = wanted[len(wanted) - count :]
            chances = row[len(row) - count :].float().log_softmax(-1)
            value = float(chances.gather(1, last[:, None]).double().sum())
            answers.append((value, bool((chances.argmax(-1) == last).all())))
        return answers

    def _tensor(self, ids: list[list[int]]) -> Tensor:
        parameter = next(self.model.parameters(), None)
        return torch.tensor(ids, device=None if parameter is None else parameter.device)


def rolling_windows(ids: Sequence[int], prefix: int, length: int) -> Iterator[Pair]:
    """Yields (context, predicted) pairs that predict every token once.

    All but the last predict as many tokens as the model sees; the last has a full context too.

    Args:
        ids: The text.
        prefix: What stands before it.
        length: Tokens that the model sees at once.

    Example:
        >>> list(rolling_windows([0, 1, 2, 3, 4], prefix=9, length=3))
        [([9], [0, 1, 2]), ([1, 2], [3, 4])]
    """
    text = [prefix, *ids]
    for start in range(1, len(text), length):
        end = min(start + length, len(text))
        yield text[max(0, end - length - 1) : start], text[start:end]


def stop_strings(until: str | Sequence[str] | None) -> list[str]:
    """Returns the texts that end an answer, without empty ones."""
    given = [until] if isinstance(until, str) else list(until or ())
    return [text for text in given if text]


def until_first(text: str, stops: Sequence[str]) -> str:
    r"""Returns the text before the first of the stops.

    Example:
        >>> until_first("four. Five", ["\\n", "."])
        'four'
    """
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def _cropped(pair: Pair, length: int) -> Pair:
    """Returns the pair with the beginning of its context left out, where it is too long."""
    context, continuation = pair
    continuation = continuation[-length:]
    room = length + 1 - len(continuation)
    return context[-room:], continuation


def _sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of sampling, where a task asks for it; else greedy."""
    if not options.get("do_sample", False):
        return {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    return {name: options[name] for name in _SAMPLING if name in options}
