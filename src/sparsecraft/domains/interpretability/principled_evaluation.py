"""Paper 34 as one measurement: a dictionary held against a supervised one, on labelled prompts.

Makelov et al. (2024) judge a dictionary by what a model does: whether reconstructions suffice and
are needed, whether an attribute can be edited by few latents, and whether latents stand for values
of attributes. Edits stand beside those of a dictionary of the known attributes (the ceiling) and
beside no edit (the floor). Sufficiency and necessity stand beside that dictionary's, and are 0 for
mean ablation by definition. F1 scores and cosines are 1 for its codes by construction, and stand
beside what shuffled labels give.

The pieces are functions of their own (`control`, `editing`, `label_scores`,
`supervised_dictionary`); this puts them together for one node and one changed attribute.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.kinds import Evaluation
from sparsecraft.core.kinds.base import Batch
from sparsecraft.domains.interpretability.control import (
    CEILING,
    FLOOR,
    compare_edits,
    evaluate_approximation,
)
from sparsecraft.domains.interpretability.editing import Edit, f1_edit, greedy_edit
from sparsecraft.domains.interpretability.feature_scores import feature_f1, value_masks
from sparsecraft.domains.interpretability.label_scores import label_scores
from sparsecraft.domains.interpretability.latent_amplitudes import (
    amplitudes,
    directions,
    scale_warning,
)
from sparsecraft.domains.interpretability.nodes import NodeOutputs
from sparsecraft.domains.interpretability.principled_scores import PrincipledScores
from sparsecraft.domains.interpretability.supervised_dictionary import (
    CODES,
    Codes,
    SupervisedDictionary,
)
from sparsecraft.domains.interpretability.value_latents import value_latents
from sparsecraft.model.sae import SparseAutoencoder

NEEDED = ("x", "x_changed", "attributes", "changed")


@method(
    "principled_evaluation",
    paper=Paper(
        "Makelov et al.",
        2024,
        "2405.08366",
        number=34,
        title=(
            "Towards Principled Evaluations of Sparse Autoencoders for Interpretability and Control"
        ),
    ),
    taxonomy=Taxonomy(
        of="codes",
        when="after training",
        start_to_end="sparse to sparse",
        mask="none",
        criterion="none",
        granularity=("unstructured",),
        allocation="none",
        budget="none",
        needs=("data", "labels", "pretrained model"),
        cost="a forward pass for each edit",
        runtime="none",
    ),
)
@dataclass(frozen=True, kw_only=True)
class PrincipledEvaluation(Evaluation):
    """Measures sufficiency, necessity, control and interpretability against supervised codes.

    Args:
        attribute: The one that is edited; None: the only one that differs in the changed prompts.
        codes: Of the supervised dictionary, "mean" or "mse".
        sizes: Latents taken out, and as many put in.
        max_group: Values joined in a union at most.
        max_conjunctions: Pairs of values of two attributes that are scored at most.
        seed: Of the shuffled labels.
    """

    attribute: str | None = None
    codes: Codes = "mean"
    sizes: tuple[int, ...] = (1, 2, 4)
    max_group: int = 10
    max_conjunctions: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.codes not in CODES:
            raise UnknownName("kind of codes", str(self.codes), CODES)
        if not self.sizes or min(self.sizes) < 1:
            raise InvalidValue(f"sizes={self.sizes} are not allowed: give numbers of at least 1")
        for name in ("max_group", "max_conjunctions"):
            if getattr(self, name) < 1:
                raise InvalidValue(f"{name}={getattr(self, name)} is not allowed: at least 1")

    def measure(self, model: Any, data: Iterable[Batch]) -> PrincipledScores:
        """Returns the figures by name, those of the ceiling and the floor beside, and notes.

        Args:
            model: The autoencoder.
            data: Two batches, the first to fit the supervised dictionary and the F1 scores on, the
                second to measure on. Each is a mapping with `x` and `x_changed`, the node's
                activations (rows, d) on prompts and on changed ones; `attributes` and `changed`,
                name to the values of the rows; and, in the second, `outputs` (`nodes.outputs`)
                and `metric` (from logits to a number a row), without which only distances and
                scores are measured. The attribution distance needs the metric's gradient: that of
                `nodes.outputs`, or `gradient` (rows, d) in the second batch.

        Raises:
            InvalidValue: If there are not two batches, something is missing, or not exactly one
                attribute was changed.
            UnknownName: For an attribute or a value that the first batch does not have.
        """
        fit, tested = self._parts(model, data)
        known = SupervisedDictionary(self.codes).fit(fit["x"], fit["attributes"])
        name = self._attribute(known, tested)
        # Labels are counted in float64, which not every device has.
        code, d = amplitudes(model, fit["x"]).cpu(), directions(model).cpu()
        labels = fit["attributes"]
        stand = label_scores(
            code, d, known, labels, name,
            max_group=self.max_group, max_conjunctions=self.max_conjunctions, seed=self.seed,
        )  # fmt: skip
        warning = scale_warning(model, fit["x"])
        notes = [*([] if warning is None else [warning]), *stand.notes]
        masks = value_masks(known.indices(labels)[name], len(known.values[name]))
        f1 = feature_f1(code != 0, masks).f1
        found = stand.figures | self._control(model, known, name, f1, tested, notes)
        found |= self._approximation(model, known, fit["x"].mean(0), tested)
        return PrincipledScores(found, value_latents(code, d, known, labels), tuple(notes))

    def _parts(self, model: Any, data: Iterable[Batch]) -> tuple[Batch, Batch]:
        if not isinstance(model, SparseAutoencoder):
            raise InvalidValue(f"a SparseAutoencoder is evaluated, not a {type(model).__name__}")
        parts = list(data)
        if len(parts) != 2:
            raise InvalidValue(
                f"{len(parts)} batches were given; two are needed: one to fit on, one to measure on"
            )
        for part, needed in zip(parts, (("x", "attributes"), NEEDED), strict=True):
            missing = [key for key in needed if key not in part]
            if missing:
                raise InvalidValue(f"a batch lacks {missing[0]!r}; needed are {', '.join(needed)}")
        return parts[0], parts[1]

    def _attribute(self, known: SupervisedDictionary, tested: Batch) -> str:
        if self.attribute is not None:
            if self.attribute not in known.values:
                raise UnknownName("attribute", self.attribute, known.values)
            return self.attribute
        before, after = known.indices(tested["attributes"]), known.indices(tested["changed"])
        moved = [name for name in before if not torch.equal(before[name], after[name])]
        if len(moved) != 1:
            raise InvalidValue(
                f"the changed prompts differ in {moved or 'nothing'}: exactly one attribute is to "
                "be changed, or name it with attribute="
            )
        return moved[0]

    def _control(
        self,
        sae: SparseAutoencoder,
        known: SupervisedDictionary,
        name: str,
        f1: Tensor,
        tested: Batch,
        notes: list[str],
    ) -> dict[str, float]:
        x, changed = tested["x"], tested["x_changed"]
        old = known.indices(tested["attributes"])[name]
        new = known.indices(tested["changed"])[name]
        edits: dict[str, Edit] = {
            f"{k} out and {k} in": f1_edit(sae, x, changed, f1, old, new, k) for k in self.sizes
        }
        edits |= {f"{2 * k} greedy": greedy_edit(sae, x, changed, 2 * k) for k in self.sizes}
        supervised = known.edit(x, tested["attributes"], {name: tested["changed"][name]})
        weight = known.weights(tested["attributes"])[name]
        if "outputs" not in tested:
            distances = {CEILING: supervised, FLOOR: x, **{k: e.edited for k, e in edits.items()}}
            return {
                f"distance, {key}": float((changed - edited).norm(dim=1).mean())
                for key, edited in distances.items()
            }
        gradient = _gradient(tested)
        if gradient is None:
            notes.append("no attribution distance: there is no metric, or no gradient of it")
        table = compare_edits(
            tested["outputs"], x, changed, (supervised, weight), edits, gradient=gradient
        )
        found: dict[str, float] = {}
        for score in table.scores:
            found |= {
                f"agreement, {score.name}": score.agreement,
                f"rescaled, {score.name}": score.rescaled,
                f"weight, {score.name}": score.weight,
                f"distance, {score.name}": score.distance,
            }
            if gradient is not None:
                found[f"attribution distance, {score.name}"] = score.attribution
        return found

    def _approximation(
        self, sae: SparseAutoencoder, known: SupervisedDictionary, mean: Tensor, tested: Batch
    ) -> dict[str, float]:
        if "outputs" not in tested or "metric" not in tested:
            return {}
        found: dict[str, float] = {}
        with torch.no_grad():
            made: Mapping[str, Tensor] = {
                "autoencoder": sae(tested["x"]),
                CEILING: known.reconstruct(tested["attributes"]),
            }
        for name, reconstruction in made.items():
            each = evaluate_approximation(
                tested["outputs"], tested["metric"], tested["x"], reconstruction, mean
            )
            found |= {
                f"sufficiency, {name}": each.sufficiency,
                f"necessity, {name}": each.necessity,
            }
        return found


def _gradient(tested: Batch) -> Tensor | None:
    """Returns the metric's gradient (rows, d) at the node, or None where it cannot be had."""
    given: Tensor | None = tested.get("gradient")
    if given is not None:
        return given
    outputs = tested["outputs"]
    if "metric" not in tested or not isinstance(outputs, NodeOutputs):
        return None
    return outputs.gradient(tested["metric"], tested["x"])
