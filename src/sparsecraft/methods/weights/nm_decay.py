"""Progressive gradient flow: masked weights take part strongly at first, then less and less.

Above 80 % sparsity N:M training degrades, which Bambhaniya et al. (2024) put down to the noise
that straight-through gradients of masked weights bring into Adam's second moment. They let these
weights fade instead. MDGF decays the value of the masked entries; SDGF steps from a loose pattern
to the target; both end in a fine-tuning under the true N:M mask.

Where the paper and its code leave off or contradict each other: the decay is counted in optimiser
steps from the end of the dense phase; the pattern of SDGF follows from the clock alone and changes
at steps rather than at epochs; what is exported is always the N:M weight, however much still leaks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.gradient_flow import (
    DECAYS,
    STRUCTURES,
    Decay,
    Stage,
    mask_decay,
    pattern_at,
    patterns_towards,
    scaled_beta,
    stages,
    whole_steps,
)
from sparsecraft.core.kinds import Clock
from sparsecraft.core.patterns import NM, Pattern, parse_pattern
from sparsecraft.methods.weights.straight_through import ForwardMasked

PAPER = Paper(
    "Bambhaniya et al.",
    2024,
    "2402.04744",
    number=2,
    title="Progressive Gradient Flow for Robust N:M Sparsity Training in Transformers",
)


def _taxonomy(*granularity: str) -> Taxonomy:
    return Taxonomy(
        of="weights",
        when="during training",
        start_to_end="dense to sparse",
        mask="dynamic",
        criterion="magnitude",
        granularity=granularity,
        allocation="uniform",
        budget="hard per layer",
        needs=("data", "gradients", "dense weights"),
        cost="dense gradients and a selection in every forward pass",
        runtime="none",
    )


@dataclass(frozen=True, kw_only=True)
class _Phased(ForwardMasked):
    """Training in three phases, masked entries decaying in the second.

    Args:
        beta: Of the decay, per optimiser step, above 0. None scales it to the sparsifying phase:
            8 / steps for the exponential, which ends at exp(-8), and 1 / (0.75 steps) for the
            linear one, which ends after three quarters.
        finetune: Fraction of the training, at its end, under the true mask of the target pattern.
    """

    beta: float | None = None
    finetune: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta is not None and self.beta <= 0:
            raise InvalidValue(f"beta={self.beta:g} is not allowed: a decay needs beta above 0")
        if not 0 <= self.finetune < 1 or self.dense + self.finetune >= 1:
            raise InvalidValue(
                f"dense={self.dense:g} and finetune={self.finetune:g} are fractions of the "
                "training and leave nothing between them: their sum must be below 1"
            )

    def decayed(self, decay: str, clock: Clock) -> float:
        """Returns D(t) of this step, 0 in the fine-tuning."""
        begin = whole_steps(self.dense, clock.total)
        end = whole_steps(1 - self.finetune, clock.total)
        if clock.step >= end:
            return 0.0
        beta = scaled_beta(decay, end - begin) if self.beta is None else self.beta
        return mask_decay(decay, max(0, clock.step - begin), beta)


@method("mdgf", paper=PAPER, taxonomy=_taxonomy("N:M", "unstructured", "block", "channel"))
@dataclass(frozen=True, kw_only=True)
class MDGF(_Phased):
    """Computes with W * (m + (1 - m) D(t)): masked entries fade out while all train.

    Args:
        decay: How D falls from 1: "exponential" or "linear".
        beta: Of the decay, per optimiser step. None scales it to the run: 8 / steps of the
            sparsifying phase for the exponential, 1 / (0.75 steps) for the linear decay.
        finetune: Fraction of the training, at its end, under the true mask.

    Example:
        >>> halfway = MDGF(decay="linear", beta=0.01, finetune=0.0)
        >>> halfway.leak(Clock(step=50, total=100)), halfway.leak(Clock(step=100, total=100))
        (0.5, 0.0)

    Reference:
        Bambhaniya et al., 2024, arXiv 2402.04744, section 3.1.
    """

    decay: Literal["exponential", "linear"] = "exponential"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decay not in ("exponential", "linear"):
            raise UnknownName("decay", str(self.decay), ("exponential", "linear"))

    def leak(self, clock: Clock) -> float:
        """Returns D(t)."""
        return self.decayed(self.decay, clock)


@method("sdgf", paper=PAPER, taxonomy=_taxonomy("N:M"))
@dataclass(frozen=True, kw_only=True)
class SDGF(_Phased):
    """Goes from a loose N:M pattern to the target, in equal frames of the training.

    Args:
        schedule: "stepwise" halves what is kept of each M, for which M / N must be a power of
            two; "geometric" keeps the density and halves the groups from 8M on, which must divide
            the layer; "densify" begins sparser, at N:8M; "custom" takes `stages`.
        stages: For "custom": (fraction of the training, pattern) in ascending order, the last one
            the target; a mapping will do.
        decay: "step" masks truly; "linear" and "exponential" let masked entries fade as in MDGF,
            beside the change of pattern.
        beta: Of the decay, as in MDGF.
        finetune: Fraction of the training, at its end, that the frames leave to the target.

    Example:
        >>> [(stage.start, str(stage.pattern)) for stage in SDGF(pattern=NM(1, 8)).table(100)]
        [(0, '7:8'), (22, '4:8'), (45, '2:8'), (67, '1:8')]

    Reference:
        Bambhaniya et al., 2024, arXiv 2402.04744, section 3.2.
    """

    schedule: Literal["stepwise", "geometric", "densify", "custom"] = "stepwise"
    stages: tuple[tuple[float, str], ...] = ()
    decay: Decay = "step"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.schedule not in (*STRUCTURES, "custom"):
            raise UnknownName("schedule", str(self.schedule), (*STRUCTURES, "custom"))
        if self.decay not in DECAYS:
            raise UnknownName("decay", str(self.decay), DECAYS)
        if self.decay == "step" and self.beta is not None:
            raise InvalidValue(
                f"beta={self.beta:g} beside decay='step', which has none: give decay='linear' or "
                "'exponential' to combine the two decays, or leave beta out"
            )
        object.__setattr__(self, "stages", _settled(self.stages))
        for pattern in (self.pattern, *map(parse_pattern, self.patterns.values())):
            self._check(pattern)

    def table(self, total: int, target: Pattern | None = None) -> tuple[Stage, ...]:
        """Returns the patterns with the steps at which they begin.

        Args:
            total: Steps of the training.
            target: The pattern to end with; by default `pattern`.
        """
        target = self.pattern if target is None else target
        if self.schedule == "custom":
            return tuple(
                Stage(whole_steps(begin, total), _nm(parse_pattern(text)))
                for begin, text in self.stages
            )
        towards = patterns_towards(self.schedule, _nm(target))
        return stages(towards, total, self.dense * total, self.finetune * total)

    def pattern_at(self, target: Pattern, clock: Clock) -> Pattern | None:
        """Returns the pattern of this step's frame, or None while the layer is dense."""
        if clock.step < whole_steps(self.dense, clock.total):
            return None
        return pattern_at(self.table(clock.total, target), clock.step)

    def leak(self, clock: Clock) -> float:
        """Returns D(t), 0 unless a decay of values was asked for too."""
        return self.decayed(self.decay, clock)

    def passes(self, target: Pattern, total: int) -> Iterator[Pattern]:
        """Yields every pattern on the way to the target."""
        yield from (stage.pattern for stage in self.table(total, target))

    def _check(self, target: Pattern) -> None:
        """Raises InvalidValue unless the schedule leads to the target."""
        if not isinstance(target, NM):
            raise InvalidValue(
                f"sdgf changes an N:M pattern, and {target} is none. Give one such as '1:16', or "
                "use mdgf or gradual_magnitude."
            )
        if self.schedule != "custom":
            patterns_towards(self.schedule, target)
            if self.stages:
                raise InvalidValue(
                    f"stages are given beside schedule={self.schedule!r}: give schedule='custom'"
                )
        elif not self.stages or self.stages[-1][1] != str(target):
            raise InvalidValue(
                f"the custom stages {list(self.stages)} do not end with the target {target}. Give "
                "(fraction of the training, pattern) pairs of which the last has the target."
            )


def _settled(given: Mapping[Any, Any] | Sequence[Any]) -> tuple[tuple[float, str], ...]:
    """Returns custom stages as plain pairs, checked."""
    pairs = given.items() if isinstance(given, Mapping) else given
    settled = tuple((float(begin), str(_nm(parse_pattern(text)))) for begin, text in pairs)
    begins = [begin for begin, _ in settled]
    if begins != sorted(set(begins)) or any(not 0 <= begin < 1 for begin in begins):
        raise InvalidValue(
            f"stages begin at {begins}: give fractions of the training in [0, 1), ascending"
        )
    return settled


def _nm(pattern: Pattern) -> NM:
    if not isinstance(pattern, NM):
        raise InvalidValue(f"{pattern} is not an N:M pattern such as '2:8'")
    return pattern
