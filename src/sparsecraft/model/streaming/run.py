"""One run of a streamed pruning: begin or take up, stage by stage, and put the result in place."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sparsecraft
from sparsecraft.core import catalog
from sparsecraft.core.errors import CheckpointError, OutOfMemory
from sparsecraft.core.kinds import Layerwise
from sparsecraft.model.calibration import Position, Stage
from sparsecraft.model.checkpoints import CONFIG, plain_settings
from sparsecraft.model.digests import digest, digest_of_batches
from sparsecraft.model.files import replace_directory
from sparsecraft.model.memory import peak_bytes, private_bytes
from sparsecraft.model.prune_report import LayerReport, budget_notes, layer_report
from sparsecraft.model.pruning import (
    Batch,
    Progress,
    check_finite,
    count_tokens,
    prune_stage,
)
from sparsecraft.model.side_files import copy_side_files
from sparsecraft.model.streaming.budget import Budget, budget_of
from sparsecraft.model.streaming.journal import Journal
from sparsecraft.model.streaming.output import OutputMasks, OutputShards
from sparsecraft.model.streaming.report import StreamReport
from sparsecraft.model.streaming.skeleton import Skeleton
from sparsecraft.model.streaming.stages import (
    StreamedBlocks,
    plan_of,
    roles_of,
    streamed_stages,
)
from sparsecraft.model.targets import Targets


class StreamedPruning:
    """One streamed pruning, from its plan to the finished directory.

    Args:
        skeleton: The model.
        method: What prunes it.
        targets: Which matrices.
        batches: Calibration batches.
        seed: Of everything random.
        journal: Where the work stands.
    """

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
        self.roles = roles_of(skeleton.model, method, targets, self.batches)
        self.output = OutputShards(skeleton.shards, journal.model)
        shapes = {name: tuple(p.shape) for name, p in skeleton.model.named_parameters()}
        pruned = dict.fromkeys(target.parameter for target in targets)
        self.masks = OutputMasks({name: shapes[name] for name in pruned}, journal.model)
        self.resumed_at: int | None = None
        self.private = 0

    @property
    def budget(self) -> Budget:
        """The memory that it will take."""
        parameters = self.plan.parameters
        return budget_of(self.skeleton, parameters, self.targets, self.method, self.batches)

    def run(
        self, out: Path, *, resume: bool, notes: Sequence[str], progress: Progress | None
    ) -> StreamReport:
        """Does it and returns what was done.

        Args:
            out: The directory that appears when all is complete.
            resume: Whether an interrupted run is taken up.
            notes: What the report is to say beside its own.
            progress: Called with (stage, done, total).

        Raises:
            CheckpointError: If the disk is full; what is done is kept.
            OutOfMemory: If the memory runs out; what is done is kept.
        """
        with self.journal.alone(), _kept(self):
            self._begin(resume=resume, notes=notes)
            self._go(progress)
            return self._finish(out)

    def _begin(self, *, resume: bool, notes: Sequence[str]) -> None:
        """Takes up an interrupted run, or makes the files and copies what is not pruned."""
        self.started = time.perf_counter()
        done = self.journal.begin(self._settings(), resume=resume)
        if done:
            self.resumed_at = self.journal.progress.done
            return
        self.output.prepare()
        self.masks.prepare()
        pruned = {p.key for name in self.masks.shapes for p in self.skeleton.layout[name]}
        self.output.copy(name for name in self.skeleton.shards.entries if name not in pruned)
        self.output.sync()
        self.masks.sync()
        self.journal.progress.copied = True
        self.journal.progress.notes = list(notes)
        self._commit()

    @torch.no_grad()
    def _go(self, progress: Progress | None) -> None:
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

    def _finish(self, out: Path) -> StreamReport:
        """Writes what lies beside the weights, puts the directory in place and reports."""
        report = self._report(out)
        settings = plain_settings({"pruning": report.to_json()})
        folder = self.journal.model
        (folder / CONFIG).write_text(json.dumps(settings, indent=2, default=str) + "\n")
        copy_side_files(self.skeleton.shards.directory, folder)
        replace_directory(folder, out)
        self.journal.remove()
        return report

    def _prune(
        self, stage: Stage, filled: Mapping[str, Tensor], densities: Mapping[str, float]
    ) -> None:
        """Prunes a stage, writes its weights and masks, and remembers what to report."""
        check_finite(filled, stage.targets)
        state = self.journal.progress
        for name in dict.fromkeys(target.parameter for target in stage.targets):
            parts = tuple(target for target in stage.targets if target.parameter == name)
            of_one = replace(stage, targets=parts)
            done = prune_stage(self.method, of_one, filled, densities, self.seed, self.roles)
            mask = Targets(parts, ()).mask(self.skeleton.model, done.masks)
            mask.verify(filled)
            self.masks.write(name, mask[name])
            for piece in self.skeleton.layout[name]:
                self.output.write(piece.key, piece.view(filled[name]))
            rows = (
                layer_report(t, done.masks[t.name], densities[t.name], done.facts.get(t.name))
                for t in parts
            )
            state.rows += [row.to_json() for row in rows]
            state.notes += done.notes
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
            "targets": digest([("names", list(self.targets.shapes))]),
            "calibration": digest_of_batches(self.batches),
            "seed": self.seed,
            "dtype": str(self.skeleton.dtype),
            "versions": {"sparsecraft": sparsecraft.__version__, "torch": torch.__version__},
        }

    def _report(self, out: Path) -> StreamReport:
        state = self.journal.progress
        made = (LayerReport(**{**row, "shape": tuple(row["shape"])}) for row in state.rows)
        rows = {row.name: row for row in made}
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
def _kept(run: StreamedPruning) -> Iterator[None]:
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


def _so_far(run: StreamedPruning) -> str:
    total = len(run.plan.parameters)
    missing = run.output.nbytes + run.masks.nbytes
    return (
        f"{run.journal.progress.done} of {total} stages are done and kept in {run.journal.folder}; "
        f"the whole takes {missing / 2**20:.0f} MiB of disk. Make room and run the same again to "
        "go on, or remove that folder."
    )
