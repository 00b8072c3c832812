"""Sparse-IFT as a recipe: transform, train sparse, finish."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from sparsecraft.core import catalog
from sparsecraft.core.allocation import parse_allocation
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.errors import InvalidValue, UnknownName, check_sparsity
from sparsecraft.core.kinds import InTraining, Method, Recipe
from sparsecraft.methods.weights.sparse_ift.factorized import Middle
from sparsecraft.methods.weights.sparse_ift.report import IsoFlopReport
from sparsecraft.methods.weights.sparse_ift.transform import FAMILIES, Family, sparse_ift
from sparsecraft.methods.weights.static import Static
from sparsecraft.model.sparsifier import Sparsifier
from sparsecraft.model.training_report import TrainingReport

PAPER = Paper(
    "Thangarasa et al.",
    2023,
    "2303.11525",
    number=32,
    title="Sparse Iso-FLOP Transformations for Maximizing Training Efficiency",
)


@dataclass(frozen=True)
class SparseIFTOutcome:
    """What the recipe leaves.

    Args:
        model: The larger, sparse, trained model.
        transformation: Sizes and costs.
        training: What became of the masks; None for "wide_factorized" and for sparsity 0, which
            have none.
    """

    model: nn.Module
    transformation: IsoFlopReport
    training: TrainingReport | None


@method(
    "sparse_ift",
    paper=PAPER,
    taxonomy=Taxonomy(
        of="weights",
        when="during training",
        start_to_end="sparse to sparse",
        mask="dynamic",
        criterion="gradient",
        granularity=("unstructured",),
        allocation="any",
        budget="hard global",
        needs=("data", "gradients", "retraining"),
        cost="that of the dense training, with a dense backward pass where the mask changes",
        runtime="FLOPs",
    ),
)
@dataclass(frozen=True, kw_only=True)
class SparseIFT(Recipe):
    """Makes layers larger and sparse at the FLOPs of the dense model, and trains them with RigL.

    Args:
        family: "wide", "parallel", "factorized", "doped", or "wide_factorized", a dense control.
        sparsity: Fixes how much larger the layers become, in [0, 1).
        training: The sparse training; its sparsity and allocation are set here. None means RigL
            as it is.
        allocation: "uniform", "er" or "erk".
        match_flops: See `sparse_ift`.
        middle: Of "factorized".
        seed: Of weights and masks.

    Reference:
        Thangarasa et al., 2023, arXiv 2303.11525.
    """

    family: Family = "wide"
    sparsity: float = 0.75
    training: Method | None = None
    allocation: Literal["uniform", "er", "erk"] = "uniform"
    match_flops: bool = True
    middle: Middle = "nonlinear_relu"
    seed: int = 0

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity)
        if self.family not in FAMILIES:
            raise UnknownName("family", str(self.family), FAMILIES)
        shares = self.training.source if isinstance(self.training, Static) else self.training
        if shares is None:
            return
        if not isinstance(self.training, InTraining) or not hasattr(shares, "allocation"):
            raise InvalidValue(
                f"{type(self.training).__name__} cannot train a transformed model: give a method "
                "of the kind InTraining with a sparsity and an allocation, such as rigl, set or "
                "static"
            )

    def run(self, model: nn.Module, train: Any, *, example_input: Any = None) -> SparseIFTOutcome:
        """Returns the transformed and trained model.

        Args:
            model: The dense model, left as it was.
            train: The caller's training, `train(model, *, branch, sparsifier)`. It is called once
                with the branch "sparse". `sparsifier`, if not None, takes the number of optimiser
                steps and returns the Sparsifier to attach; the training adds its `loss()`.
            example_input: See `sparse_ift`.

        Raises:
            InvalidValue: If the training did not make the Sparsifier.
        """
        larger, report = sparse_ift(
            model,
            self.family,
            sparsity=self.sparsity,
            example_input=example_input,
            match_flops=self.match_flops,
            allocation=self.allocation,
            middle=self.middle,
            seed=self.seed,
        )
        if not report.targets:
            train(larger, branch="sparse", sparsifier=None)
            return SparseIFTOutcome(larger, report, None)
        made: list[Sparsifier] = []

        def sparsifier(total_steps: int) -> Sparsifier:
            made.append(self.sparsifier(larger, report, total_steps))
            return made[-1]

        train(larger, branch="sparse", sparsifier=sparsifier)
        if not made:
            raise InvalidValue(
                "the training did not call sparsifier(total_steps), so that it was dense. Attach "
                "what it returns to the optimiser."
            )
        training = made[-1].finalize()
        return SparseIFTOutcome(training.model, report, training)

    def sparsifier(self, model: nn.Module, report: IsoFlopReport, total_steps: int) -> Sparsifier:
        """Returns the Sparsifier of a transformed model.

        Args:
            model: From `sparse_ift`.
            report: From the same call.
            total_steps: Optimiser steps of the training.
        """
        return Sparsifier(
            model,
            self._settled(report),
            targets=list(report.targets),
            total_steps=total_steps,
            seed=self.seed,
        )

    def _settled(self, report: IsoFlopReport) -> Method:
        """Returns the sparse training at the sparsity and allocation of the report."""
        start: Any = catalog.build("rigl") if self.training is None else self.training
        allocation = parse_allocation(report.allocation)
        if isinstance(start, Static):
            source: Any = start.source
            source = replace(source, sparsity=None, allocation=allocation)
            return replace(start, sparsity=report.sparsity, source=source)
        return replace(start, sparsity=report.sparsity, allocation=allocation)
