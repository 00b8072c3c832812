"""What the gates on inputs of matrices have in common: how many entries, by which rule, for whom.

A gate drops entries of the input of a matrix, differently for each token, so that the columns that
they would be multiplied with need not be read. The methods differ in the score of an entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from sparsecraft.core.errors import InvalidValue, UnknownName, check_sparsity
from sparsecraft.core.gating import ActivationGate
from sparsecraft.core.kinds import DEFAULT_SPARSITY, Gate, GateSite

Rule = Literal["topk", "threshold"]
Share = Literal["uniform", "greedy"]


@dataclass(frozen=True, kw_only=True)
class InputGate(Gate):
    """Drops entries of the inputs of matrices.

    Args:
        sparsity: Fraction of the entries of a token's activations to drop, in [0, 1).
        rule: "topk" keeps exactly int(entries * (1 - sparsity)) of every token; "threshold" keeps
            what exceeds a threshold fixed on calibration data, so tokens differ in how many.
        prefill: Where a text is read at once, the share of its tokens that is gated, counted from
            the end; the first tokens pass whole, because sinks of attention lie there. A token
            alone, as in decoding, is always gated.
        allocation: "uniform" drops the same share everywhere; "greedy" shares the drops between
            the matrices of each block by the error of the block's output.
        step: Of the greedy allocation: how much sparsity a matrix as large as the query's gets at
            a time.
        layer_wise: Calibrate each block on what comes through the gated blocks before it, instead
            of on dense inputs.
    """

    sparsity: float = DEFAULT_SPARSITY
    rule: Rule = "topk"
    prefill: float = 1.0
    allocation: Share = "uniform"
    step: float = 0.05
    layer_wise: bool = False

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        for name, allowed in self._choices().items():
            if getattr(self, name) not in allowed:
                raise UnknownName(name, str(getattr(self, name)), allowed)
        if not 0 <= self.prefill <= 1:
            raise InvalidValue(
                f"prefill={self.prefill} is not allowed: it is the share of a text's tokens that "
                "is gated while the text is read, in [0, 1]."
            )
        if not 0 < self.step <= 1:
            raise InvalidValue(f"step={self.step} is not allowed: give a share in (0, 1]")

    def asked(self, features: int) -> float:
        """Returns the sparsity."""
        return self.sparsity

    def needs_values(self) -> bool:
        """Returns whether a threshold is to be found."""
        return self.rule == "threshold"

    def greedy_step(self) -> float | None:
        """Returns the step of the greedy allocation, or None for the uniform one."""
        return self.step if self.allocation == "greedy" else None

    def on_gated_inputs(self) -> bool:
        """Returns whether blocks are calibrated one on the gated output of the other."""
        return self.layer_wise

    def factors(self, site: GateSite) -> Tensor | None:
        """Returns the factors of the scores at a site, (features,), or None for ones."""
        return None

    def fit(self, site: GateSite) -> ActivationGate:
        """Returns the gate of a site: an exact count, or a threshold found on its values."""
        norms = self.factors(site)
        if self.rule == "topk":
            return ActivationGate(keep=site.keep(), norms=norms, prefill=self.prefill)
        threshold = site.threshold(norms)
        return ActivationGate(threshold=threshold, norms=norms, prefill=self.prefill)

    def _choices(self) -> dict[str, tuple[Any, ...]]:
        return {"rule": get_args(Rule), "allocation": get_args(Share)}
