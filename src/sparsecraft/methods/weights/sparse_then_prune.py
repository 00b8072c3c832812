"""Sparse then Prune: fine-tune a transformer with a penalty on its attention, then prune globally.

Prasetyo et al. (2023) fine-tune a ViT with 0.01 times the mean of log(1 + a^2) over the attention
maps, then remove the smallest weights of the whole network by one threshold, without retraining.
They report accuracies a little above plain fine-tuning, more so after pruning.

Read this before trusting the name. Rows of a map sum to 1, so the penalty is smallest where
attention is uniform: it flattens attention and makes nothing sparse. Its code looks at the last
block only and takes the mean over all entries, at most log(2) / keys, so that in the paper's
setting it adds at most 1.2e-5 to the loss; claim 25 measures what is left of it. The defaults are
the official form; `penalty="negative_log1p_sq"`, "entropy" or "hoyer" sparsify.

Departures: the official script prunes 12 blocks by name, here the same list is found by structure
in any transformer; counts round half up as everywhere in this library, not half to even.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsecraft.core import attention_penalties as penalties
from sparsecraft.core.attention_penalties import AttentionStatistics, attention_statistics
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import (
    Clock,
    InTraining,
    Layers,
    Tensors,
    TrainedLayer,
    WeightMethod,
)
from sparsecraft.core.patterns import Unstructured
from sparsecraft.model.blocks import find_blocks
from sparsecraft.model.captures import AttentionCapture
from sparsecraft.model.targets import Row, Target, Targets, find_targets

Penalised = Literal["attention", "attention logits", "activations", "weights"]
PENALISED = ("attention", "attention logits", "activations", "weights")
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


@method(
    "sparse_then_prune",
    paper=Paper(
        "Prasetyo et al.",
        2023,
        "2307.11988",
        number=25,
        title="Sparse then Prune: Toward Efficient Vision Transformers",
    ),
    taxonomy=Taxonomy(
        of="weights",
        when="during training",
        start_to_end="dense to sparse",
        mask="static",
        criterion="magnitude",
        granularity=("unstructured", "N:M", "block", "channel"),
        allocation="global",
        budget="hard global",
        needs=("data", "labels", "pretrained model"),
        cost="a fine-tuning with attention computed in steps",
        runtime="storage",
    ),
)
@dataclass(frozen=True, kw_only=True)
class SparseThenPrune(InTraining, WeightMethod):
    """Trains with a penalty on attention, then cuts the smallest weights of the whole network.

    By default these are the patch embedding, the normalisation scales and all matrices of the
    blocks, and the classifier; never biases, class token, position embedding and final norm.
    `Sparsifier(targets=...)` takes other ones. The penalty needs attention maps, so that models of
    Hugging Face attend eagerly while they train; with `weight=0` nothing is captured.

    Args:
        sparsity: Fraction of these weights set to zero when the training is over.
        pattern: Which zeros; with scope "layer" any, with "global" only unstructured ones.
        weight: Of the penalty; the official 0.01.
        penalty: "log1p_sq" (official), "negative_log1p_sq", "l1", "hoyer" or "entropy".
        penalised: What the penalty is of: "attention" maps, "attention logits", MLP
            "activations", or the targeted "weights".
        layers: "last" (official), "all", or numbers of layers.
        reduce: "mean" (official) or "sum".
        scope: Whether one threshold serves all weights, or each layer has its share.
        include_norm: Whether normalisation scales count and may be cut, as in the official list;
            they are few and near 1, and False is the better choice for one's own work.
        include_embeddings: Whether convolutions outside the blocks, such as the patch embedding,
            count and may be cut.
        allow_negative: Whether a weight below zero, which rewards what the penalty measures, is
            meant.

    Reference:
        Prasetyo et al., 2023, arXiv 2307.11988; code yogiprsty/Sparse-ViT.
    """

    weight: float = 0.01
    penalty: str = "log1p_sq"
    penalised: Penalised = "attention"
    layers: Literal["last", "all"] | tuple[int, ...] = "last"
    reduce: Literal["mean", "sum"] = "mean"
    scope: Literal["global", "layer"] = "global"
    include_norm: bool = True
    include_embeddings: bool = True
    allow_negative: bool = False
    masked_weights = "live"

    def __post_init__(self) -> None:
        super().__post_init__()
        penalties.check_penalty(self.penalty)
        penalties.check_reduce(self.reduce)
        penalties.check_layers(self.layers)
        if not isinstance(self.layers, str):
            object.__setattr__(self, "layers", tuple(self.layers))
        if self.penalised not in PENALISED:
            raise InvalidValue(
                f"penalised={self.penalised!r} is not allowed: give one of {', '.join(PENALISED)}"
            )
        if self.penalty == "entropy" and self.penalised != "attention":
            raise InvalidValue(
                f"the entropy of {self.penalised} is not defined: only attention maps have rows "
                'that sum to 1. Take "l1" or "log1p_sq".'
            )
        if self.weight < 0 and not self.allow_negative:
            raise InvalidValue(
                f"weight={self.weight:g} rewards what the penalty measures. If that is meant, set "
                'allow_negative=True, or take penalty="negative_log1p_sq" to sparsify attention.'
            )
        self._check_scope()

    def _check_scope(self) -> None:
        if self.scope not in ("global", "layer"):
            raise InvalidValue(f'scope={self.scope!r} is not allowed: give "global" or "layer"')
        if self.scope == "global" and self.pattern != Unstructured():
            raise InvalidValue(
                f"pattern {self.pattern} has no model-wide threshold over kernels, matrices and "
                'scales. Set scope="layer", or leave the pattern unstructured.'
            )

    @property
    def captures(self) -> tuple[str, ...]:  # type: ignore[override]
        """What the penalty needs of the forward pass; nothing if its weight is 0."""
        return () if self.weight == 0 or self.penalised == "weights" else (self.penalised,)

    def targets(self, model: nn.Module, select: Any) -> Targets | None:
        """Returns the official list of weights, found by structure; None where others are chosen.

        Raises:
            NoMatch: If the model has no linear or convolutional weight.
        """
        if select is not None:
            return None
        found = find_targets(model, "*")
        blocks = tuple(f"{name}." for name in find_blocks(model))
        chosen: dict[str, list[Target]] = {target.parameter: [] for target in found}
        for target in found:
            if self.include_embeddings or not _embeds(target, blocks):
                chosen[target.parameter].append(target)
        if self.include_norm:
            chosen.update({norm.parameter: [norm] for norm in _norms(model, blocks)})
        rows = tuple(_row(row, chosen) for row in found.rows)
        ordered = (target for row in rows for target in chosen.get(row.name, ()))
        return Targets(tuple(ordered), rows)

    def begin(self, weight: Tensor, layer: TrainedLayer, clock: Clock) -> Tensor:
        """Returns the weight as it is.

        Raises:
            InvalidValue: If the pattern does not fit it; after the training would be too late.
        """
        if self.pattern != Unstructured():
            try:
                self._of_layer(weight)
            except InvalidValue as error:
                raise InvalidValue(f"{layer.name}: {error}") from error
        return weight

    def loss(self, captured: Mapping[str, Any], weights: Tensors, clock: Clock) -> Tensor | None:
        """Returns weight times the penalty, of the last forward pass."""
        if self.weight == 0:
            return None
        values = (
            [weight for weight in weights.values() if weight.dim() > 1]
            if self.penalised == "weights"
            else captured[self.penalised]
        )
        return self.weight * penalties.attention_penalty(
            values, self.penalty, layers=self.layers, reduce=self.reduce
        )

    def final_masks(self, weights: Tensors, layers: Layers, clock: Clock) -> Tensors:
        """Returns the masks of the largest weights.

        Weights that are zero already, from a pruning before, are the first to be counted among
        the zeros.
        """
        scores = {name: weight.detach().abs() for name, weight in weights.items()}
        if self.scope == "global":
            masks = self.pattern.global_masks(list(scores.values()), self.density)
            return dict(zip(scores, masks, strict=True))
        return {name: self._of_layer(score) for name, score in scores.items()}

    def _of_layer(self, score: Tensor) -> Tensor:
        rows = score.unsqueeze(0) if score.dim() == 1 else score
        return self.pattern.tensor_mask(rows, self.density).view(score.shape)


@torch.no_grad()
def attention_stats(model: nn.Module, batch: Any) -> list[AttentionStatistics]:
    """Returns entropy and peakiness of every attention layer on a batch, first layer first.

    Args:
        model: Any module with attention; it is evaluated and left in the mode it was in.
        batch: A mapping of keyword arguments, or the only input.

    Raises:
        MissingStatistic: If attention runs in a kernel that never forms its maps.
    """
    capture = AttentionCapture(model)
    training = model.training
    try:
        model.eval()
        model(**batch) if isinstance(batch, Mapping) else model(batch)
        return [attention_statistics(each) for each in capture.maps]
    finally:
        capture.remove()
        model.train(training)


def _embeds(target: Target, blocks: tuple[str, ...]) -> bool:
    """Returns whether this is a convolution outside the blocks, where images become tokens."""
    return len(target.shape) > 2 and bool(blocks) and not target.parameter.startswith(blocks)


def _norms(model: nn.Module, blocks: tuple[str, ...]) -> list[Target]:
    """Returns the normalisation scales inside the blocks."""
    found = []
    for name, module in model.named_modules():
        scale = module._parameters.get("weight")
        normalises = isinstance(module, _NORMS) or type(module).__name__.endswith("Norm")
        inside = bool(blocks) and name.startswith(blocks)
        if inside and normalises and scale is not None and scale.dim() == 1:
            kind = type(module).__name__
            found.append(Target(name, f"{name}.weight", name, kind, tuple(scale.shape)))
    return found


def _row(row: Row, chosen: Mapping[str, list[Target]]) -> Row:
    if row.name not in chosen:
        return row
    if not chosen[row.name]:
        return replace(row, targeted=False, reason="embedding, left out by include_embeddings")
    what = "normalisation scale of a block" if len(row.shape) == 1 else "weight of the network"
    return replace(row, targeted=True, reason=what)
