"""The arms of a comparison as models: dense, dense int8, pruned, and physically smaller.

A workbench holds one task and its dense model and makes any cell's model from it, in place of a
copy from disk; what decides a model is its cell and the settings alone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue, StoreError
from sparsecraft.core.kinds import Batch, ModelWide
from sparsecraft.core.mask import Mask
from sparsecraft.lab.distillation import distil, steps_for
from sparsecraft.lab.forms import NotHere, packed_size, plain_size, quantise, state_size
from sparsecraft.lab.grid import Cell, needs_data
from sparsecraft.lab.settings import CompareSettings
from sparsecraft.lab.store import RunStore
from sparsecraft.lab.tasks import Task
from sparsecraft.lab.tasks.base import to_device
from sparsecraft.model.compaction import compact
from sparsecraft.model.files import write_atomic
from sparsecraft.model.flops import count_flops
from sparsecraft.model.pruning import prune
from sparsecraft.model.refit import refit
from sparsecraft.model.targets import find_targets
from sparsecraft.model.units import UnitGroup, find_units, unit_scores

Step = Callable[[int, int], None]
STUDENT = "student.safetensors"
GRADIENT_BATCHES = 4
"""Batches of 32 labelled examples for methods that take gradients."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """A cell's model, and what was found while it was made.

    Args:
        model: Ready to be evaluated.
        mask: What was kept, by parameter; of a compacted model, by group of units.
        facts: Plain values for the run's metrics.
        files: Adds files to the run's folder.
    """

    model: nn.Module
    mask: Mask | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    files: Callable[[Path], None] | None = None


class Workbench:
    """One task, its dense model, and everything that is made from it.

    Args:
        task: What is measured.
        settings: Device, dtype, targets, calibration and the smaller arm.
    """

    def __init__(self, task: Task, settings: CompareSettings) -> None:
        self.task = task
        self.settings = settings.actual
        self.device = torch.device(settings.device)
        self.dtype: torch.dtype = getattr(torch, settings.dtype)
        self.dense = task.load_model().to(self.device, self.dtype).eval()
        self.targets = find_targets(self.dense, settings.targets)
        self.calibration = lru_cache(maxsize=2)(self._calibration)
        self.gradient_batches = lru_cache(maxsize=2)(self._gradient_batches)

    @cached_property
    def dense_flops(self) -> int:
        """FLOPs of the dense model on one example."""
        return count_flops(self.dense, self.input(1))

    def input(self, batch_size: int) -> dict[str, Tensor]:
        """Returns an input of this many examples on the device."""
        return to_device(self.task.example_input(batch_size), self.dense)

    def make(self, cell: Cell, store: RunStore, progress: Step | None = None) -> Made:
        """Returns the cell's model, made from the dense one.

        Args:
            cell: Which.
            store: Where "compact-int8" finds the student of "compact".
            progress: Called with (done, total) while a model is trained.

        Raises:
            NotHere: If this model or machine does not have the arm.
        """
        if cell.kind == "dense":
            return Made(model=self.dense, facts=self._facts(self.dense, None))
        if cell.kind == "int8":
            return self._int8(self._in_float32())
        if cell.kind == "compact":
            return self._compact(cell, progress)
        if cell.kind == "compact-int8":
            return self._compact_int8(cell, store)
        return self._sparse(cell)

    def rebuild(self, cell: Cell, store: RunStore) -> nn.Module:
        """Returns a model of a finished cell with the shapes and zeros it had, for timing.

        A pruned one has the dense values under the stored mask: values do not change the time.
        """
        if cell.kind == "sparse":
            mask = store.get(self.config(cell), mask=True).mask
            model = copy.deepcopy(self.dense)
            if mask is not None:
                mask.apply_(dict(model.named_parameters()))
            return model
        if cell.kind == "compact":
            return self.student(store)
        return self.make(cell, store).model

    def config(self, cell: Cell) -> dict[str, Any]:
        """Returns everything that decides the cell's outcome, as plain values."""
        return {**cell.config(), **self.settings.comparison(self.task.fingerprint)}

    def student(self, store: RunStore) -> nn.Module:
        """Returns the smaller model that was distilled and stored.

        Raises:
            StoreError: If it is not there, or not the one its masks describe.
        """
        config = self.config(Cell(kind="compact"))
        keep, path = store.get(config, mask=True).mask, store.path(config) / STUDENT
        if keep is None or not path.is_file():
            raise StoreError(f"{path} is missing: delete {path.parent} and run the command again")
        smaller, _ = compact(self.dense, keep, groups=self._units())
        smaller.load_state_dict(load_file(path), strict=True)
        return smaller.to(self.device, self.dtype).eval()

    def _sparse(self, cell: Cell) -> Made:
        method = cell.build()
        model = copy.deepcopy(self.dense)
        batches: Sequence[Batch] = ()
        if isinstance(method, ModelWide) and method.needs_batches:
            batches = self.gradient_batches(cell.seed)
        elif needs_data(method) or isinstance(method, ModelWide):
            batches = self.calibration(cell.seed if needs_data(method) else 0)
        begin = time.perf_counter()
        report = prune(
            model, method, targets=self.settings.targets, calibration=batches, seed=cell.seed
        )
        seconds = time.perf_counter() - begin
        model.eval()
        facts = {
            **self._facts(model, report.mask),
            "asked": report.asked,
            "sparsity": report.sparsity,
            "deterministic": method.deterministic and not needs_data(method),
            "layers": [row.to_json() for row in report.rows],
            "notes": list(report.notes),
            "prune_seconds": seconds,
        }
        return Made(model=model, mask=report.mask, facts=facts)

    def _int8(self, model: nn.Module) -> Made:
        if self.device.type != "cpu":
            raise NotHere("torch's dynamic int8 runs on the CPU only, beside which dense was not")
        begin = time.perf_counter()
        quantised = quantise(model)
        facts = self._facts(model, None) | {
            "prune_seconds": time.perf_counter() - begin,
            "bytes": {"plain": state_size(quantised), "packed": None},
            "bytes_form": "int8 state dict of torch",
        }
        return Made(model=quantised, facts=facts)

    def _compact(self, cell: Cell, progress: Step | None) -> Made:
        settings = self.settings
        begin = time.perf_counter()
        groups = self._units()
        batches = self.calibration(cell.seed)
        keep = self._kept(groups, batches)
        smaller, index_map = compact(self.dense, keep, self.input(2), groups=groups)
        refitted = refit(smaller, self.dense, index_map, batches)
        steps = settings.distill_steps or steps_for(
            smaller,
            self.dense,
            self.task,
            seconds=settings.distill_seconds,
            seed=cell.seed,
        )
        outcome = distil(
            smaller, self.dense, self.task, steps=steps, seed=cell.seed, progress=progress
        )
        smaller.eval()
        report = index_map.report
        facts = self._facts(smaller, None) | {
            "prune_seconds": time.perf_counter() - begin,
            "sparsity_all": 1 - report.parameters_after / report.parameters_before,
            "units": {name: list(pair) for name, pair in report.kept.items()},
            "refitted": refitted,
            "distillation": outcome.to_json(),
            "form": "plain" if report.plain else "compact",
            "notes": [_compact_note(steps, outcome.seconds, report.why_not_plain)],
        }
        # Clones, since a safetensors file does not take tensors that share memory.
        state = {name: tensor.detach().clone() for name, tensor in smaller.state_dict().items()}

        def files(folder: Path) -> None:
            write_atomic(folder / STUDENT, to_safetensors(state))

        return Made(model=smaller, mask=Mask(keep), facts=facts, files=files)

    def _compact_int8(self, cell: Cell, store: RunStore) -> Made:
        if not store.has(self.config(Cell(kind="compact"))):
            raise NotHere("there is no smaller model to quantise")
        smaller = self.student(store)
        made = self._int8(smaller.to("cpu", torch.float32))
        total = sum(p.numel() for p in self.dense.parameters())
        left = sum(p.numel() for p in smaller.parameters())
        made.facts["sparsity_all"] = 1 - left / total
        return made

    def _units(self) -> list[UnitGroup]:
        try:
            found = find_units(self.dense, self.input(2), kinds=("neurons", "heads"))
        except InvalidValue as error:
            raise NotHere(str(error)) from error
        except ValueError as error:
            raise NotHere(f"no units to remove: {error}") from error
        return found

    def _kept(self, groups: Sequence[UnitGroup], batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Returns the masks of the units that score highest in each group."""
        scores = unit_scores(self.dense, groups, batches)
        keep = {}
        for group in groups:
            share = self.settings.heads_keep if group.kind == "heads" else self.settings.ffn_keep
            best = scores[group.name].topk(max(1, round(share * group.size))).indices
            keep[group.name] = torch.zeros(group.size, dtype=torch.bool).index_fill(0, best, True)
        return keep

    def _facts(self, model: nn.Module, mask: Mask | None) -> dict[str, Any]:
        """Returns bytes, FLOPs and the share of zeros of a float model."""
        total = sum(p.numel() for p in self.dense.parameters())
        one = self.input(1)
        return {
            "sparsity_all": 0.0 if mask is None else (mask.numel - mask.kept) / total,
            "bytes": {
                "plain": plain_size(model),
                "packed": None if mask is None else packed_size(model, mask),
            },
            "bytes_form": "safetensors" if mask is None else "bitmask and values",
            "flops": {
                "dense": self.dense_flops,
                "effective": count_flops(model, one, mask=mask),
            },
            "prune_seconds": 0.0,
        }

    def _in_float32(self) -> nn.Module:
        plain = self.device.type == "cpu" and self.dtype == torch.float32
        return self.dense if plain else self.task.load_model().eval()

    def _calibration(self, seed: int) -> Sequence[Batch]:
        batches = self.task.calibration(self.settings.calibration_tokens, seed)
        return [to_device(batch, self.dense) for batch in batches]

    def _gradient_batches(self, seed: int) -> Sequence[Batch]:
        batches = islice(self.task.training_batches(32, seed), GRADIENT_BATCHES)
        return [to_device(batch, self.dense) for batch in batches]


def _compact_note(steps: int, seconds: float, why_not_plain: str) -> str:
    note = f"distilled in {steps} steps ({seconds:.0f} s)"
    return f"{note}; saved in compact form: {why_not_plain}" if why_not_plain else note
