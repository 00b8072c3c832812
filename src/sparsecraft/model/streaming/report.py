"""What a streamed pruning says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsecraft.model.prune_report import PruneSummary


@dataclass(frozen=True, kw_only=True)
class StreamReport(PruneSummary):
    """The outcome of a pruning from directory to directory.

    Args:
        directory: Where the pruned model is; its masks lie in `masks.safetensors`.
        stages: Blocks, or matrices without data, that were gone through.
        resumed_at: How many of them an interrupted run had done; None if there was none.
        peak_bytes: The most physical memory the process ever had, where that is known.
        private_bytes: The most private memory that it had mapped at the end of a stage.
    """

    directory: Path
    stages: int
    resumed_at: int | None = None
    peak_bytes: int | None = None
    private_bytes: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        memory = {"peak_bytes": self.peak_bytes, "private_bytes": self.private_bytes}
        walk = {"streamed": True, "stages": self.stages, "resumed_at": self.resumed_at}
        return {**super().to_json(), **walk, **memory}
