"""Methods that measure instead of changing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sparsecraft.core.kinds.base import Batch, Method


@dataclass(frozen=True, kw_only=True)
class Evaluation(Method):
    """Measures instead of changing."""

    @abstractmethod
    def measure(self, model: Any, data: Iterable[Batch]) -> dict[str, float]:
        """Returns the measured figures by name."""
