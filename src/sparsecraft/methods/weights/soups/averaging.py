"""Averages of state dicts that share their zeros, and the greedy choice among candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.core.mask import Mask

State = Mapping[str, Tensor]
_COUNTERS = ("num_batches_tracked",)
_SUM_TOLERANCE = 1e-6


def soup(
    state_dicts: Sequence[State],
    weights: Sequence[float] | None = None,
    masks: Mask | Sequence[Mask] | None = None,
) -> dict[str, Tensor]:
    """Returns the average of the state dicts, as sparse as each of them.

    Averages are formed in double precision around the first candidate, so that what is equal in all
    of them, a pruned weight for example, comes out equal to the last bit. Step counters of batch
    normalisation are rounded; other integers and bools must agree. Tensors that share their memory
    in every candidate share it in the soup.

    Args:
        state_dicts: At least two, with the same keys, shapes and types.
        weights: One for each, at least 0, with the sum 1; equal ones by default.
        masks: The mask of all candidates, or one for each, which must be equal. What they prune is
            taken as zero.

    Raises:
        InvalidValue: If there are fewer than two, or if they or their masks do not fit together.
        NonFinite: If an entry that differs between the candidates is NaN or infinite.

    Example:
        >>> one, two = {"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([3.0, 0.0])}
        >>> soup([one, two])
        {'w': tensor([2., 0.])}

    Reference:
        Zimmer et al., 2023, arXiv 2306.16788, algorithm 1.
    """
    shares = check_candidates(state_dicts, weights)
    mask = _common(masks, len(state_dicts))
    if mask is None:
        return _average(state_dicts, shares)
    return _average([masked(state, mask) for state in state_dicts], shares)


def union_soup(
    state_dicts: Sequence[State], masks: Sequence[Mask], weights: Sequence[float] | None = None
) -> tuple[dict[str, Tensor], Mask]:
    """Returns the average of differently pruned models, and what is left of its sparsity.

    This is what souping *independently* pruned models does (IMP-AVG): a weight that any of them
    keeps is alive in the average.

    Args:
        state_dicts: See `soup`.
        masks: One for each.
        weights: See `soup`.

    Returns:
        The state dict and the union of the masks.
    """
    shares = check_candidates(state_dicts, weights)
    if len(masks) != len(state_dicts):
        raise InvalidValue(f"{len(masks)} masks for {len(state_dicts)} candidates: give one each")
    if any(mask.keys() != masks[0].keys() for mask in masks):
        raise InvalidValue("the masks are of different tensors: prune the same layers in all")
    states = [masked(state, mask) for state, mask in zip(state_dicts, masks, strict=True)]
    union = {name: torch.stack([m[name] for m in masks]).any(0) for name in masks[0]}
    return _average(states, shares), Mask(union)


@dataclass(frozen=True, kw_only=True)
class GreedySoup:
    """What a greedy choice left.

    Args:
        state: The soup, recalibrated.
        chosen: Candidates in the order in which they were taken; the first is the best one.
        scores: Of each candidate alone, higher being better.
        score: Of the soup.
    """

    state: dict[str, Tensor]
    chosen: tuple[int, ...]
    scores: tuple[float, ...]
    score: float


def greedy_soup(
    candidates: Sequence[State],
    evaluate: Callable[[State], float],
    recalibrate: Callable[[State], State] | None = None,
    masks: Mask | Sequence[Mask] | None = None,
) -> GreedySoup:
    """Returns the average of those candidates that do not make it worse.

    The best candidate comes first; the others follow by their score, and each stays if the average
    with it scores at least as well as the one without.

    Args:
        candidates: See `soup`.
        evaluate: The score of a state dict on held-out data, higher being better; never the test.
        recalibrate: Gives a state dict with fresh statistics of batch normalisation; used on every
            candidate and on every soup before it is scored.
        masks: See `soup`.

    Raises:
        InvalidValue: See `soup`.
        NonFinite: If a score is NaN or infinite, or see `soup`.

    Reference:
        Wortsman et al., 2022, arXiv 2203.05482, recipe 1; Zimmer et al., 2023, section 3.
    """
    check_candidates(candidates)
    mask = _common(masks, len(candidates))
    states = [state if mask is None else masked(state, mask) for state in candidates]

    def prepared(state: State) -> dict[str, Tensor]:
        return dict(state if recalibrate is None else recalibrate(state))

    def scored(state: State) -> float:
        score = float(evaluate(state))
        if not math.isfinite(score):
            raise NonFinite(f"a candidate or soup has the score {score}; nothing can be chosen")
        return score

    singles = [prepared(state) for state in states]
    scores = [scored(state) for state in singles]
    # Of equal scores the earlier candidate comes first.
    first, *others = sorted(range(len(states)), key=lambda index: -scores[index])
    chosen, best, score = [first], singles[first], scores[first]
    for index in others:
        trial = prepared(soup([states[i] for i in [*chosen, index]]))
        trial_score = scored(trial)
        if trial_score >= score:
            chosen, best, score = [*chosen, index], trial, trial_score
    return GreedySoup(state=best, chosen=tuple(chosen), scores=tuple(scores), score=score)


def masked(state: State, mask: Mask) -> dict[str, Tensor]:
    """Returns the state dict with everything outside the mask set to zero, in new tensors."""
    missing = [name for name in mask if name not in state]
    if missing:
        raise InvalidValue(f"masked tensors are not in the state dict: {missing[:3]}")
    pruned = {name: state[name].masked_fill(~keep.to(state[name].device), 0)
              for name, keep in mask.items()}  # fmt: skip
    # Another name of a pruned tensor must show the pruned one.
    memory = {_memory(state[name]): tensor for name, tensor in pruned.items()}
    return {key: pruned.get(key, memory.get(_memory(t), t)) for key, t in state.items()}


def check_candidates(
    state_dicts: Sequence[State], weights: Sequence[float] | None = None
) -> tuple[float, ...]:
    """Returns the weight of each candidate, or raises InvalidValue if they cannot be averaged."""
    number = len(state_dicts)
    if number < 2:
        raise InvalidValue(f"a soup needs at least 2 candidates, but {number} was given")
    first = state_dicts[0]
    for key, value in ((k, v) for state in state_dicts for k, v in state.items()):
        if not isinstance(value, Tensor):
            raise InvalidValue(
                f"{key!r} is a {type(value).__name__}: only tensors can be averaged. Take extra "
                "state out of the state dicts, and load the soup with strict=False."
            )
    for index, state in enumerate(state_dicts[1:], 1):
        differing = sorted(first.keys() ^ state.keys())
        if differing:
            raise InvalidValue(
                f"candidate {index} and candidate 0 have different keys: {differing[:3]}. Only "
                "models of one architecture can be averaged."
            )
        for key, tensor in first.items():
            mine, theirs = (tuple(t.shape) for t in (tensor, state[key]))
            if mine != theirs or tensor.dtype != state[key].dtype:
                raise InvalidValue(
                    f"{key!r} is {state[key].dtype} {theirs} in candidate {index}, but "
                    f"{tensor.dtype} {mine} in candidate 0"
                )
    return _shares(number, weights)


def _shares(number: int, weights: Sequence[float] | None) -> tuple[float, ...]:
    if weights is None:
        return (1.0 / number,) * number
    if len(weights) != number:
        raise InvalidValue(f"{len(weights)} weights for {number} candidates: give one each")
    shares = tuple(float(weight) for weight in weights)
    if min(shares) < 0 or not abs(sum(shares) - 1) <= _SUM_TOLERANCE:
        raise InvalidValue(
            f"weights {list(shares)} have the sum {sum(shares):g}: they must be at least 0 and "
            "add up to 1"
        )
    return shares


def _common(masks: Mask | Sequence[Mask] | None, number: int) -> Mask | None:
    """Returns the one mask of all candidates."""
    if masks is None or isinstance(masks, Mask):
        return masks
    if len(masks) != number:
        raise InvalidValue(f"{len(masks)} masks for {number} candidates: give one each, or one")
    for index, mask in enumerate(masks[1:], 1):
        if mask == masks[0]:
            continue
        name = next(
            (n for n in masks[0] if n not in mask or not torch.equal(mask[n], masks[0][n])),
            "a further tensor",
        )
        raise InvalidValue(
            f"the masks of candidates 0 and {index} differ, first in {name!r}: the average would "
            "be less sparse than they are. Soup candidates that were retrained from one pruned "
            "model, or take union_soup, which says how dense the average is."
        )
    return masks[0]


def _average(states: Sequence[State], shares: Sequence[float]) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    done: dict[tuple[object, ...], Tensor] = {}
    for key in states[0]:
        memory = tuple(_memory(state[key]) for state in states)
        if memory not in done:
            done[memory] = _average_one(key, [state[key].detach() for state in states], shares)
        result[key] = done[memory]
    return result


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """Returns what is equal for two names of one tensor, and only for them."""
    if not tensor.numel():
        return (id(tensor),)
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _average_one(key: str, tensors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    first = tensors[0]
    tensors = [tensor.to(first.device) for tensor in tensors]
    if all(torch.equal(tensor, first) for tensor in tensors[1:]):
        return first.clone()
    whole = not (first.is_floating_point() or first.is_complex())
    if whole and not key.endswith(_COUNTERS):
        raise InvalidValue(
            f"{key!r} holds {first.dtype} that differ between the candidates: integers and bools "
            "cannot be averaged. Are they of one architecture and one vocabulary?"
        )
    wide = torch.complex128 if first.is_complex() else torch.float64
    base = first.to(wide)
    total = base.clone()
    for tensor, share in zip(tensors[1:], shares[1:], strict=True):
        total += share * (tensor.to(wide) - base)
    if not bool(torch.isfinite(total).all()):
        bad = [i for i, t in enumerate(tensors) if not bool(torch.isfinite(t).all())]
        raise NonFinite(
            f"{key!r} is not finite in candidates {bad}: leave out what diverged, or retrain it "
            "with a lower learning rate"
        )
    return (total.round() if whole else total).to(first.dtype)
