"""Prunes a model directory into another, block by block: neither model is ever in memory whole.

The host of Layerwise methods for models larger than memory. It reads a block from the byte ranges
of its tensors, gathers statistics with the hidden states that come through the pruned blocks before
it, prunes, writes the block into files of the same layout, lets the pruned block make the next
hidden states, and forgets it. The outcome is that of `prune` in memory, bit for bit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sparsecraft
from sparsecraft.core import catalog
from sparsecraft.core.errors import CheckpointError, InvalidValue, OutOfMemory
from sparsecraft.core.kinds import Layerwise, Method
from sparsecraft.core.mask import Mask
from sparsecraft.model.calibration import Position, Stage
from sparsecraft.model.checkpoints import CONFIG, plain_settings
from sparsecraft.model.files import refuse_existing, replace_directory
from sparsecraft.model.memory import peak_bytes, private_bytes, room
from sparsecraft.model.prunable import check_prunable
from sparsecraft.model.prune_report import (
    LayerReport,
    PruneSummary,
    budget_notes,
    layer_report,
)
from sparsecraft.model.pruning import (
    Batch,
    Progress,
    check_finite,
    check_shapes,
    count_tokens,
    limited,
    prune_stage,
)
from sparsecraft.model.side_files import copy_side_files
from sparsecraft.model.streaming.budget import budget_of
from sparsecraft.model.streaming.journal import Journal, digest_of
from sparsecraft.model.streaming.output import OutputMasks, OutputShards
from sparsecraft.model.streaming.shards import Shards
from sparsecraft.model.streaming.skeleton import Skeleton
from sparsecraft.model.streaming.stages import StreamedBlocks, plan_of, streamed_stages
from sparsecraft.model.targets import Select, Targets


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
        """Returns it as plain values, without what differs from run to run of one outcome."""
        return {**super().to_json(), "streamed": True, "stages": self.stages}


def prune_directory(
    source: str | Path,
    out: str | Path,
    method: str | Method = "magnitude",
    *,
    targets: Select = None,
    calibration: Sequence[Batch] | None = None,
    max_tokens: int | None = None,
    max_memory: int | None = None,
    kind: str = "auto",
    seed: int = 0,
    resume: bool = True,
    again: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> StreamReport:
    """Prunes a model directory into another with one block in memory, and returns what was done.

    Shards keep their names, keys, types and headers; what is not pruned is copied byte by byte.
    A run that was killed goes on where it was when it is started again with the same settings.

    Args:
        source: A Hugging Face directory with safetensors.
        out: The directory to write; it appears when it is complete.
        method: A Layerwise method: name in the catalog, "file.py:Class", or one that is built.
        targets: Which layers; see `find_targets`.
        calibration: Batches of forward arguments, for methods that look at activations.
        max_tokens: How many calibration tokens are used at most.
        max_memory: Bytes of private memory that the process may have; refused before the start if
            that is too little.
        kind: Which head the model has; see `load_pretrained`.
        seed: Of everything random.
        resume: Whether an interrupted run is taken up; otherwise it is thrown away.
        again: Whether a model that was pruned before may be pruned on top of it.
        overwrite: Whether `out` is replaced if it exists.
        progress: Called with (stage, done, total).
        options: Settings of the method, for example sparsity=0.6, pattern="2:4".

    Raises:
        SparsityError: Naming what is wrong. Where the disk is full or the memory short in the
            middle, what is done so far is kept beside `out`, and the next run goes on with it.
    """
    source, out = Path(source), Path(out)
    refuse_existing(out, overwrite=overwrite)
    notes = check_prunable(source, again=again)
    skeleton = Skeleton(Shards.of(source), kind=kind)
    chosen, found = check_streamable(skeleton, method, targets, options)
    batches = limited(list(calibration or ()), max_tokens)
    run = _Run(skeleton, chosen, found, batches, seed, Journal(out))
    budget_of(skeleton, run.plan.parameters, found, chosen, batches).check(room(max_memory))
    with run.journal.alone(), _kept(run):
        run.begin(resume=resume, notes=notes)
        run.go(progress)
        report = run.finish(source, out)
    return report


def check_streamable(
    skeleton: Skeleton, method: str | Method, targets: Select, options: Mapping[str, Any]
) -> tuple[Layerwise, Targets]:
    """Returns the method and its targets, or raises if it cannot work block by block.

    Raises:
        InvalidValue: For a method that compares all layers with one another.
        SparsityError: As `sparsecraft.model.pruning.check`.
    """
    chosen, found = check_shapes(skeleton.model, method, targets=targets, **options)
    if not isinstance(chosen, Layerwise):
        raise InvalidValue(
            f"{chosen.info.name} compares the scores of all layers, so it needs the whole model in "
            "memory. Use a layer-wise method (magnitude, wanda, sparsegpt), or --stream never."
        )
    return chosen, found


class _Run:
    """One streamed pruning, from its plan to the finished directory."""

    def __init__(
        self,
        skeleton: Skeleton,
        method: Layerwise,
        targets: Targets,
        batches: Sequence[Batch],
        seed: int,
        journal: Journal,
    ) -> None:
        self.skeleton, self.method, self.targets = skeleton, method, targets
        self.batches = batches if method.statistics else []
        self.seed, self.journal = seed, journal
        self.plan = plan_of(skeleton.model, targets, method)
        self.output = OutputShards(skeleton.shards, journal.model)
        shapes = {name: tuple(p.shape) for name, p in skeleton.model.named_parameters()}
        pruned = dict.fromkeys(target.parameter for target in targets)
        self.masks = OutputMasks({name: shapes[name] for name in pruned}, journal.model)
        self.resumed_at: int | None = None
        self.private = 0

    def begin(self, *, resume: bool, notes: Sequence[str]) -> None:
        """Takes up an interrupted run, or makes the files and copies what is not pruned."""
        self.started = time.perf_counter()
        done = self.journal.begin(self._settings(), resume=resume)
        if done:
            self.resumed_at = self.journal.progress.done
            return
        self.output.prepare()
        self.masks.prepare()
        pruned = {p.key for name in self.masks for p in self.skeleton.layout[name]}
        self.output.copy(name for name in self.skeleton.shards.entries if name not in pruned)
        self.output.sync()
        self.masks.sync()
        self.journal.progress.copied = True
        self.journal.progress.notes = list(notes)
        self._commit()

    @torch.no_grad()
    def go(self, progress: Progress | None) -> None:
        """Prunes what is left to prune."""
        source = StreamedBlocks(self.skeleton, self.plan, self._finished)
        state = self.journal.progress
        densities = self.method.allocation(self.targets.shapes, self.method.density)
        start = Position(state.done, self.journal.load_hidden())
        if state.done == len(self.plan.parameters):
            return
        walk = streamed_stages(source, self.targets, self.method, self.batches, progress, start)
        for stage in walk:
            self._prune(stage, source.filled, densities)

    def finish(self, source: Path, out: Path) -> StreamReport:
        """Writes what lies beside the weights, puts the directory in place and reports."""
        report = self._report(out)
        settings = plain_settings({"pruning": report.to_json()})
        folder = self.journal.model
        (folder / CONFIG).write_text(json.dumps(settings, indent=2, default=str) + "\n")
        copy_side_files(source, folder)
        replace_directory(folder, out)
        self.journal.remove()
        return report

    def _prune(
        self, stage: Stage, filled: Mapping[str, Tensor], densities: Mapping[str, float]
    ) -> None:
        """Prunes a stage, writes its weights and masks, and remembers what to report."""
        check_finite(filled, stage.targets)
        kept, notes = prune_stage(self.method, stage, filled, densities, self.seed)
        state = self.journal.progress
        for name in dict.fromkeys(target.parameter for target in stage.targets):
            parts = [target for target in stage.targets if target.parameter == name]
            mask = Targets(tuple(parts), ()).mask_of(filled[name], kept)
            Mask({name: mask}).verify(filled)
            self.masks.write(name, mask)
            for piece in self.skeleton.layout[name]:
                self.output.write(piece.key, piece.view(filled[name]))
        asked = {target.name: densities[target.name] for target in stage.targets}
        state.rows += [layer_report(t, kept[t.name], asked[t.name]).to_json() for t in stage.targets]
        state.notes += notes
        self.private = max(self.private, private_bytes() or 0)

    def _finished(self, done: int, hidden: Sequence[Tensor]) -> None:
        self.output.sync()
        self.masks.sync()
        self.journal.progress.done = done
        self.journal.save_hidden(hidden)
        self._commit()

    def _commit(self) -> None:
        now = time.perf_counter()
        self.journal.progress.seconds += now - self.started
        self.started = now
        self.journal.commit()

    def _settings(self) -> dict[str, Any]:
        """Returns everything that decides the outcome."""
        return {
            "source": self.skeleton.shards.identity(),
            "method": catalog.describe(self.method),
            "targets": digest_of([{"names": list(self.targets.shapes)}]),
            "calibration": digest_of(self.batches),
            "seed": self.seed,
            "dtype": str(self.skeleton.dtype),
            "versions": {"sparsecraft": sparsecraft.__version__, "torch": torch.__version__},
        }

    def _report(self, out: Path) -> StreamReport:
        state = self.journal.progress
        rows = {row["name"]: LayerReport(**{**row, "shape": tuple(row["shape"])}) for row in state.rows}
        report = StreamReport(
            method=self.method,
            rows=tuple(rows[target.name] for target in self.targets),
            targets=self.targets,
            seconds=state.seconds,
            seed=self.seed,
            calibration_tokens=count_tokens(self.batches),
            notes=tuple(state.notes),
            directory=out,
            stages=len(self.plan.parameters),
            resumed_at=self.resumed_at,
            peak_bytes=peak_bytes(),
            private_bytes=self.private or private_bytes(),
        )
        return replace(report, notes=(*report.notes, *budget_notes(report)))


@contextmanager
def _kept(run: _Run) -> Iterator[None]:
    """Turns a full disk or memory into an error that says what is done and how to go on."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"could not write to {run.journal.folder}: {error.strerror or error}. {_so_far(run)}"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        raise OutOfMemory(
            f"the memory ran out ({str(error).splitlines()[0] if str(error) else 'MemoryError'}). "
            f"Give fewer calibration tokens, or more memory. {_so_far(run)}"
        ) from error


def _so_far(run: _Run) -> str:
    total = len(run.plan.parameters)
    missing = run.output.nbytes + run.masks.nbytes
    return (
        f"{run.journal.progress.done} of {total} stages are done and kept in {run.journal.folder}; "
        f"the whole takes {missing / 2**20:.0f} MiB of disk. Make room and run the same again to "
        "go on, or remove that folder."
    )
