"""Top-k MLPs: each token computes with the k largest activations of every MLP.

Li et al. (2022) saw that few entries of a trained transformer's MLP activations are non-zero, and
made that exact: after the ReLU each token keeps its k largest entries, in training and at
inference. Trained so, models are as good as dense ones, better calibrated, and withstand noise in
labels and inputs better.

Here the gate is put on a model that is trained already, which is another experiment, and the
report calls it post hoc. To train with it from the first step, use
`sparsecraft.model.topk_mlp.apply_topk`. Only the second product of an MLP gets smaller: the first
must be computed to know which entries are largest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.gating import ActivationGate
from sparsecraft.core.kinds import Gate, GateSite
from sparsecraft.core.topk import check_topk, kept_of
from sparsecraft.model.topk_activation import check_replacement
from sparsecraft.model.topk_mlp import replace_activations

# Near the 128 of 3072 that the paper keeps, and at least some of a small layer.
DEFAULT_FRACTION = 1 / 16


@dataclass(frozen=True)
class ReplacedActivations:
    """Activations that were replaced before the gates were put in.

    Args:
        model: The model.
        before: Module name to what stood there.
    """

    model: nn.Module
    before: Mapping[str, nn.Module]

    def undo(self) -> None:
        """Puts the activations back."""
        for name, module in self.before.items():
            self.model.set_submodule(name, module)


@method(
    "topk_mlp",
    paper=Paper(
        "Li et al.",
        2022,
        "2210.06313",
        number=5,
        title=("The Lazy Neuron Phenomenon: On Emergence of Activation Sparsity in Transformers"),
    ),
    taxonomy=Taxonomy(
        of="activations",
        when="at inference",
        start_to_end="dense to dense",
        mask="input-dependent",
        criterion="magnitude",
        granularity=("neuron",),
        allocation="uniform",
        budget="hard per layer",
        needs=("pretrained model",),
        cost="none",
        runtime="FLOPs",
    ),
)
@dataclass(frozen=True, kw_only=True)
class TopK(Gate):
    """Keeps the k largest activations of every MLP for each token, post hoc.

    Args:
        k: How many entries of an activation each token keeps.
        fraction: Or their share, rounded half up, at least one; 1/16 where neither is given.
        replace_activation: "relu" puts a ReLU in place of the model's activations first, as the
            paper's models have it; None keeps those that the model was trained with.

    Reference:
        Li et al., 2022, arXiv 2210.06313, section 4.
    """

    k: int | None = None
    fraction: float | None = None
    replace_activation: str | None = None
    sites = "activations"

    def __post_init__(self) -> None:
        if self.replace_activation == "none":  # as a command line writes it
            object.__setattr__(self, "replace_activation", None)
        check_replacement(self.replace_activation)
        check_topk(*self._choice)

    @property
    def _choice(self) -> tuple[int | None, float | None]:
        neither = self.k is None and self.fraction is None
        return self.k, DEFAULT_FRACTION if neither else self.fraction

    def asked(self, features: int) -> float:
        """Returns the share of the entries that a token drops."""
        return 1 - kept_of(features, *self._choice) / features

    def prepare(self, model: Any) -> ReplacedActivations | None:
        """Replaces the activations where that was asked."""
        if self.replace_activation is None:
            return None
        return ReplacedActivations(model, replace_activations(model, self.replace_activation))

    def fit(self, site: GateSite) -> ActivationGate:
        """Returns the gate of an activation."""
        return ActivationGate(keep=kept_of(site.features, *self._choice, site.name))

    def remarks(self) -> Iterator[str]:
        """Yields that this is no trained top-k model, and what was replaced."""
        yield (
            "post hoc: the model was not trained with top-k, and its results are not those of a "
            "model that was (apply_topk)"
        )
        if self.replace_activation is not None:
            yield (
                f"{self.replace_activation} stands in place of every other activation of the MLPs, "
                "which the model was trained with"
            )
