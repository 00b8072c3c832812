"""DSnoT: improves the mask of a pruned layer without training it and without changing a weight.

Zhang et al. (2023) begin with any pruned layer and swap, row by row, kept against pruned weights,
so that the output which pruning is expected to take away goes to zero. The means and variances of
the inputs choose what is grown, Wanda's score what is given up; the mathematics are in
`sparsecraft.core.dsnot`, with what was wrong in the official code.

Departures. A row ends before its expected error turns its sign (stop="same_sign"), which the
official code does only where asked: in narrow layers a swap is large beside the threshold, and
the paper's stop swaps on past zero, back and forth, which makes small models worse than their
start. The official code leaves feed-forward layers with their first mask unless told otherwise;
here all layers are swapped. Its threshold, 0.1, is on the scale of input sums over whole sequences,
so it weighs more where calibration windows are short.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from sparsecraft.core import catalog, scores
from sparsecraft.core.allocation import Uniform
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.dsnot import StopRule, check_settings, dsnot_groups, dsnot_rows
from sparsecraft.core.errors import InvalidValue, NoMatch
from sparsecraft.core.inverse_factor import inverse_factor
from sparsecraft.core.kinds import Layer, Layerwise, Pruned, Role
from sparsecraft.core.patterns import NM, Pattern, Unstructured
from sparsecraft.core.statistics import (
    Hessian,
    InputNorm,
    InputSum,
    InputVariance,
    Statistic,
)
from sparsecraft.kernels.mask_swaps import Swaps
from sparsecraft.methods.weights.magnitude import Magnitude
from sparsecraft.methods.weights.sparsegpt import SparseGPT
from sparsecraft.methods.weights.wanda import Wanda

_ROLES: Mapping[str, tuple[Role, ...]] = {
    "attention": ("attention",),
    "mlp": ("feed-forward", "expert"),
}


@method(
    "dsnot",
    paper=Paper(
        "Zhang et al.",
        2023,
        "2310.08915",
        number=28,
        title="Dynamic Sparse No Training: Training-Free Fine-tuning for Sparse LLMs",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="after training",
        start_to_end="dense to sparse",
        mask="static",
        criterion="activation-aware",
        granularity=("unstructured", "N:M"),
        allocation="any",
        budget="hard per layer",
        needs=("data", "pretrained model", "dense weights"),
        cost="that of its start, and at most 50 swaps a row",
        runtime="wall-clock",
    ),
)
@dataclass(frozen=True, kw_only=True)
class DSnoT(Layerwise):
    """Swaps kept against pruned weights of a first mask until each row's expected error is small.

    Args:
        pattern: Unstructured, by default in each output row, or N:M.
        start: The method that makes the first mask, to this method's sparsity and pattern:
            "wanda", "magnitude", "sparsegpt" or any other Layerwise one. With "sparsegpt" the mask
            is chosen by its error of the dense weights, W^2 / U^2.
        updated_weights: Whether the start's own weights are kept too, as SparseGPT repairs them; a
            weight that is grown comes back as it was in the dense layer.
        cycles: Swaps of a row at most.
        threshold: A row whose expected error is at most this is done.
        variance_power: How much a varying input counts against growing; 0 not at all.
        stop: "same_sign" ends a row before its expected error would turn its sign, "threshold" (the
            paper's) does not. N:M always ends there.
        layers: Which layers are swapped: "all", "attention", "mlp", or a glob over layer names.
            The others keep the first mask.

    Reference:
        Zhang et al., 2023, arXiv 2310.08915, section 3 and algorithm 1.
    """

    pattern: Pattern = field(default_factory=lambda: Unstructured(per="row"))
    start: Layerwise | str = "wanda"
    updated_weights: bool = False
    cycles: int = 50
    threshold: float = 0.1
    variance_power: float = 1.0
    stop: StopRule = "same_sign"
    layers: str = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.pattern, Unstructured | NM):
            raise InvalidValue(
                f"dsnot swaps weight by weight and has no form for {self.pattern}. "
                'Use "row", "unstructured" or an N:M pattern such as "2:4".'
            )
        check_settings(self.cycles, self.threshold, self.variance_power, self.stop)
        if isinstance(self.pattern, NM) and self.stop != "same_sign":
            raise InvalidValue(
                f"stop={self.stop!r} has no effect with {self.pattern}, where a row always ends "
                "before its error turns its sign; leave it out."
            )
        object.__setattr__(self, "start", self._fitted(self.start))

    @property
    def first(self) -> Layerwise:
        """The start, with this method's sparsity, pattern and allocation."""
        assert isinstance(self.start, Layerwise)
        return self.start

    @property
    def statistics(self) -> tuple[type[Statistic], ...]:  # type: ignore[override]
        """What the swaps need of the inputs, and what the start needs."""
        return tuple(dict.fromkeys((*self.first.statistics, InputNorm, InputSum, InputVariance)))

    @property
    def deterministic(self) -> bool:
        """Whether the start is."""
        return self.first.deterministic

    @property
    def needs_roles(self) -> bool:
        """Whether layers are named by what they are."""
        return self.layers in _ROLES or self.first.needs_roles

    def check_layers(self, roles: Mapping[str, Role | None]) -> None:
        """Raises NoMatch if no layer would be swapped."""
        self.first.check_layers(roles)
        if not any(self._swaps(name, role) for name, role in roles.items()):
            last = [*roles][-1].rpartition(".")[2].partition("[")[0]
            raise NoMatch(
                f"layers={self.layers!r} is none of the {len(roles)} targets. Give all, attention, "
                f"mlp, or a glob over their names, such as '*{last}*'."
            )

    def prune(self, weight: Tensor, layer: Layer) -> Pruned:
        """Returns the matrix under the start's mask after the swaps."""
        _check_finite(weight, layer)
        dense, mask = self._begin(weight, layer)
        if not self._swaps(layer.name, layer.role):
            return Pruned.keeping(dense, mask)
        done = self._swapped(dense, mask, layer)
        facts = {
            "expected error before": float(done.before.abs().mean()),
            "expected error": float(done.after.abs().mean()),
            "swaps": float(done.swaps.sum()),
        }
        return Pruned.keeping(dense, done.keep, facts)

    def _begin(self, weight: Tensor, layer: Layer) -> tuple[Tensor, Tensor]:
        """Returns the weights, the pruned ones as they were before pruning, and the first mask."""
        if self.updated_weights:
            begun = self.first.prune(weight, layer)
            return torch.where(begun.mask, begun.weight, weight), begun.mask
        if type(self.first) in (Wanda, Magnitude, SparseGPT):
            found = self._initial_scores(weight, layer)
            return weight, self.pattern.mask(found, layer.density)
        return weight, self.first.prune(weight, layer).mask

    def _swapped(self, weight: Tensor, mask: Tensor, layer: Layer) -> Swaps:
        sums, variances = layer[InputSum], layer[InputVariance]
        if isinstance(self.pattern, NM):
            return dsnot_groups(
                weight,
                sums,
                variances,
                mask,
                self._initial_scores(weight, layer),
                self.pattern.of,
                cycles=self.cycles,
                threshold=self.threshold,
                variance_power=self.variance_power,
            )
        return dsnot_rows(
            weight,
            sums,
            layer[InputNorm].double().square(),
            variances,
            mask,
            cycles=self.cycles,
            threshold=self.threshold,
            variance_power=self.variance_power,
            stop=self.stop,
        )

    def _initial_scores(self, weight: Tensor, layer: Layer) -> Tensor:
        """Returns what the start goes by; Wanda's score for a start whose own is not known."""
        if isinstance(self.first, Magnitude):
            return scores.magnitude(weight)
        if isinstance(self.first, SparseGPT):
            factor = inverse_factor(layer[Hessian], self.first.damping, layer.name)
            return scores.obs(weight.masked_fill(factor.dead, 0), factor.upper.diagonal())
        return scores.wanda(weight, layer[InputNorm])

    def _swaps(self, name: str, role: Role | None) -> bool:
        """Returns whether a layer is swapped."""
        if self.layers in _ROLES:
            return role in _ROLES[self.layers]
        return self.layers == "all" or fnmatchcase(name, self.layers)

    def _fitted(self, start: Layerwise | str) -> Layerwise:
        """Returns the start with this method's sparsity, pattern and allocation."""
        built = catalog.build(start)
        if not isinstance(built, Layerwise):
            raise InvalidValue(
                f"start={built.info.name} is a {built.info.kind} method; dsnot starts from a "
                "Layerwise one, such as wanda, magnitude or sparsegpt."
            )
        if self.updated_weights and isinstance(built, Wanda | Magnitude):
            raise InvalidValue(
                f"updated_weights has no effect with start={built.info.name}, which updates none; "
                "leave it out, or use start=sparsegpt."
            )
        defaults = {each.name: each for each in dataclasses.fields(built)}
        make = defaults["pattern"].default_factory
        usual = make() if callable(make) else defaults["pattern"].default
        for name, own, mine, unset in (
            ("sparsity", built.sparsity, self.sparsity, None),
            ("pattern", built.pattern, self.pattern, usual),
            ("allocation", built.allocation, self.allocation, Uniform()),
        ):
            if own not in (mine, unset):
                raise InvalidValue(
                    f"the start has {name}={own}, but dsnot has {name}={mine}: the start prunes to "
                    f"what dsnot is given, so set {name} there and leave it out of the start."
                )
        return dataclasses.replace(
            built, sparsity=self.sparsity, pattern=self.pattern, allocation=self.allocation
        )


def _check_finite(weight: Tensor, layer: Layer) -> None:
    scores.check_finite(weight, f"{layer.name}: the weight")
    for kind, what in ((InputSum, "sum"), (InputVariance, "variance"), (InputNorm, "norm")):
        scores.check_finite(layer[kind], f"{layer.name}: the {what} of its input")
