"""How the gradient flow through masked weights is taken back: decays of values and of patterns.

Bambhaniya et al. (2024) train N:M weights in phases: dense, sparsifying, fine-tuning. While
sparsifying, either the masked entries fade (mask decay) or the pattern tightens (structure decay).
Everything here is a function of the time alone, so that a resumed training needs no memory of it.

Times may be steps or epochs; the official code counts epochs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.patterns import NM

Decay = Literal["step", "linear", "exponential"]
Structure = Literal["stepwise", "geometric", "densify"]
DECAYS: tuple[str, ...] = get_args(Decay)
STRUCTURES: tuple[str, ...] = get_args(Structure)

# exp(-8) = 0.0003 is left when an exponential decay ends.
EXPONENTS = 8.0
# A linear decay reaches zero after this part of its span.
LINEAR_SHARE = 0.75
FRAMES = 4


def whole_steps(fraction: float, total: int) -> int:
    """Returns how many whole steps a fraction of the training has, cleaned of its last few bits.

    Example:
        >>> whole_steps(0.29, 100), whole_steps(0.1, 25)
        (29, 2)
    """
    return math.floor(round(fraction * total, 6))


def mask_decay(decay: str, time: int, beta: float) -> float:
    """Returns D(t), what masked entries are multiplied by.

    Args:
        decay: "step" is 0, "linear" max(1 - beta t, 0), "exponential" exp(-beta t).
        time: Steps since the dense phase, at least 0.
        beta: Per step.

    Example:
        >>> mask_decay("linear", 30, 0.01), round(mask_decay("exponential", 100, 0.01), 3)
        (0.7, 0.368)

    Reference:
        Bambhaniya et al., 2024, arXiv 2402.04744, section 3.
    """
    if decay == "step":
        return 0.0
    if decay == "linear":
        return max(1.0 - beta * time, 0.0)
    if decay == "exponential":
        return math.exp(-beta * time)
    raise UnknownName("decay", decay, DECAYS)


def scaled_beta(decay: str, span: int) -> float:
    """Returns the beta for which D is near 0 at the end of `span` steps.

    The exponential decay ends at exp(-8); the linear one reaches 0 after three quarters.
    """
    return EXPONENTS / max(1, span) if decay == "exponential" else 1 / (LINEAR_SHARE * max(1, span))


class Stage(NamedTuple):
    """A pattern and the time at which it comes into force."""

    start: int
    pattern: NM


def patterns_towards(structure: str, target: NM) -> list[NM]:
    """Returns the patterns of a structure decay in their order, the target last.

    Args:
        structure: "stepwise" keeps M and halves what is kept, after a first (M-1):M; "geometric"
            keeps the density and halves 8N:8M three times; "densify" halves M three times from
            N:8M, so that it begins sparser.
        target: N:M.

    Raises:
        InvalidValue: If "stepwise" cannot reach N by halving M.

    Example:
        >>> [str(pattern) for pattern in patterns_towards("stepwise", NM(1, 8))]
        ['7:8', '4:8', '2:8', '1:8']
        >>> [str(pattern) for pattern in patterns_towards("geometric", NM(1, 8))]
        ['8:64', '4:32', '2:16', '1:8']

    Reference:
        Bambhaniya et al., 2024, arXiv 2402.04744, section 3.
    """
    keep, of = target.keep, target.of
    scales = [2 ** (FRAMES - 1 - frame) for frame in range(FRAMES)]
    if structure == "geometric":
        return [NM(keep * scale, of * scale) for scale in scales]
    if structure == "densify":
        return [NM(keep, of * scale) for scale in scales]
    if structure != "stepwise":
        raise UnknownName("structure decay", structure, STRUCTURES)
    halvings = round(math.log2(of / keep))
    if keep * 2**halvings != of:
        raise InvalidValue(
            f"a stepwise decay to {target} halves what is kept of {of}, but {of} / {keep} is not a "
            "power of two. Use the geometric decay, or a pattern such as "
            f"{keep}:{keep * 2 ** max(1, halvings)}."
        )
    if not halvings:
        return [target]
    return [NM(of - 1, of), *(NM(of // 2**frame, of) for frame in range(1, halvings + 1))]


def stages(
    patterns: Sequence[NM], total: float, dense: float = 0.0, finetune: float = 0.0
) -> tuple[Stage, ...]:
    """Returns the patterns with the times at which they begin, in equal frames.

    Args:
        patterns: In their order; the last one stays to the end.
        total: Length of the training.
        dense: Length of the dense phase before the first pattern.
        finetune: Length of the fine-tuning, which the frames leave out.

    Example:
        >>> [stage.start for stage in stages(patterns_towards("geometric", NM(1, 8)), 350)]
        [0, 87, 175, 262]
    """
    # Cleaned of the last few bits, as fractions of a training are not whole numbers of steps.
    first = math.floor(round(dense, 6))
    frame = (total - dense - finetune) / len(patterns)
    return tuple(
        Stage(first + math.floor(round(number * frame, 6)), pattern)
        for number, pattern in enumerate(patterns)
    )


def pattern_at(table: Sequence[Stage], time: int) -> NM | None:
    """Returns the pattern of the last stage that has begun, or None before the first."""
    begun = [stage.pattern for stage in table if stage.start <= time]
    return begun[-1] if begun else None
