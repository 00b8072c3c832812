"""The trainings of a method and of its controls, kept so that a kill costs little.

All arms share seeds, batches, optimiser and schedule. A finished training is a file in `runs/`, one
under way a checkpoint; the models of the first seed lie in `model/` and `compact/`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import InTraining
from sparsecraft.lab.compact_form import CompactForm, removes_units
from sparsecraft.lab.finished import save_compact, save_finished
from sparsecraft.lab.report.values import finite
from sparsecraft.lab.small_dense import SmallDense, small_dense
from sparsecraft.lab.tasks.base import Task
from sparsecraft.lab.training import Trained, TrainSettings, starting_model, train_task
from sparsecraft.lab.training_compact import Removal, made_smaller
from sparsecraft.lab.training_loop import processes
from sparsecraft.lab.training_record import record
from sparsecraft.model.checkpoints import CONFIG, TRAINING_SETTINGS
from sparsecraft.model.files import refuse_existing, write_atomic

SETTINGS = "train.json"
METHOD, COMPACT = "method", "compact"
DENSE, SMALL, RANDOM = "dense", "small dense", "random static"
TWIN, SHUFFLED = "static twin", "shuffled mask"
Tell = Callable[[str, int, int], None]
"""Called with (arm and seed, steps done, steps of all arms and seeds)."""


@dataclass(frozen=True)
class Arm:
    """One kind of training.

    Args:
        role: "method", "compact" (what became of its model), "dense", "small dense", "random
            static", "static twin" or "shuffled mask".
        label: For the reader.
        method: None trains dense.
        settings: How it is trained.
        parameters: How many a narrower model has; None trains the task's own.
    """

    role: str
    label: str
    method: InTraining | None
    settings: TrainSettings
    parameters: int | None = None

    @property
    def id(self) -> str:
        """Name for files."""
        return self.role.replace(" ", "-")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that decides what is trained.

    Args:
        task: What to train on.
        method: The method in question.
        settings: How all arms are trained.
        targets: Which layers; see `find_targets`.
        seeds: Of the repetitions.
        controls: Whether the controls are trained too.
        out: Folder of everything.
        checkpoint_every: Steps from one checkpoint to the next.
        removal: What is done with whole units that have gone.
    """

    task: Task
    method: InTraining
    settings: TrainSettings
    targets: Sequence[str] | None
    seeds: Sequence[int]
    controls: bool
    out: Path
    checkpoint_every: int = 500
    removal: Removal = field(default_factory=Removal)

    def identity(self) -> dict[str, Any]:
        """Returns what must be equal for the trainings in a folder to be taken up."""
        return {
            "task": self.task.name,
            "task_fingerprint": self.task.fingerprint,
            "method": catalog.describe(self.method),
            "targets": None if self.targets is None else list(self.targets),
            "settings": {**asdict(self.settings), "learning_rate": self.settings.peak},
            "removal": asdict(self.removal),
        }


def claim_folder(plan: Plan) -> None:
    """Makes the folder this plan's own, or goes on in it.

    Raises:
        InvalidValue: If it holds trainings of another method or other settings; the message names
            what differs.
        CheckpointError: If it holds something else.
    """
    path = plan.out / SETTINGS
    wanted = json.loads(json.dumps(plan.identity(), default=str))
    process = processes()
    if not process.is_main_process:
        process.wait_for_everyone()
    if path.is_file() and _begun(plan.out):
        found = json.loads(path.read_text())
        for name, value in wanted.items():
            if found.get(name) != value:
                which = "other" if name in ("settings", "targets", "removal") else "another"
                raise InvalidValue(
                    f"{plan.out} holds trainings with {which} {name.replace('_', ' ')}: "
                    f"{_difference(found.get(name), value)}. Choose another --out, or repeat the "
                    "settings to go on there."
                )
    else:
        if not path.is_file():
            refuse_existing(plan.out, overwrite=False)
        write_atomic(plan.out / "checkpoints" / CONFIG, json.dumps(TRAINING_SETTINGS) + "\n")
        write_atomic(path, json.dumps(wanted, indent=1) + "\n")
    if process.is_main_process:
        process.wait_for_everyone()


def run_arm(plan: Plan, arm: Arm, seed: int, tell: Tell | None = None) -> dict[str, Any]:
    """Returns the record of one training; one that is finished is read, one that stopped goes on.

    Args:
        plan: What is trained.
        arm: Which training.
        seed: Which repetition.
        tell: Told of every step.
    """
    kept = plan.out / "runs" / f"{arm.id}-{seed}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    checkpoint = plan.out / "checkpoints" / f"{arm.id}-{seed}.pt"

    def progress(done: int, total: int, loss: float) -> None:
        if tell is not None:
            tell(f"{arm.label}, seed {seed}, loss {loss:.3f}", done, total)

    full = model = None
    if arm.parameters is not None:
        full = starting_model(plan.task, "scratch", seed)
        model = narrow(plan, arm.parameters, seed).model
    trained = train_task(
        plan.task,
        arm.method,
        arm.settings,
        seed=seed,
        targets=_targets(plan, arm),
        model=model,
        checkpoint=checkpoint,
        checkpoint_every=plan.checkpoint_every,
        progress=progress,
    )
    found = {"seed": seed, **record(plan.task, trained, arm.settings, full)}
    form, finer = None, plan.out / "checkpoints" / f"{arm.id}-{seed}-finetune.pt"
    if arm.role == METHOD:
        form, smaller, remarks = made_smaller(
            plan.task,
            trained,
            arm.settings,
            plan.removal,
            found["flops"],
            seed=seed,
            checkpoint=finer,
            checkpoint_every=plan.checkpoint_every,
            progress=progress,
        )
        found["compact"] = smaller and {**smaller, "trainings": found["trainings"]}
        found["notes"] = [*found["notes"], *remarks]
        if form is not None and removes_units(plan.method):
            found["kept"] = form.kept  # a mask of units does not tell how many weights they have
    found = finite(found)
    process = processes()
    if process.is_main_process:
        if arm.role == METHOD and seed == plan.seeds[0]:
            _save_models(plan, trained, form)
        write_atomic(kept, json.dumps(found, indent=1, allow_nan=False))
        checkpoint.unlink(missing_ok=True)
        finer.unlink(missing_ok=True)
    process.wait_for_everyone()
    return found


def narrow(plan: Plan, parameters: int, seed: int) -> SmallDense:
    """Returns the task's fresh model cut to about this many parameters."""
    fresh = starting_model(plan.task, "scratch", seed)
    return small_dense(fresh, parameters, plan.task.example_input(2), seed=seed)


def _save_models(plan: Plan, trained: Trained, form: CompactForm | None) -> None:
    """Writes the finished model of the first seed, and its smaller form where there is one."""
    report = trained.report
    assert report is not None
    save_finished(
        trained.model.cpu(),
        plan.out / "model",
        plan.task,
        mask=report.mask,
        form=report.form,
        training=report.to_json(),
    )
    if form is not None:
        form.model.cpu()
        save_compact(form, plan.out / "compact", plan.task)


def _targets(plan: Plan, arm: Arm) -> list[str] | None:
    """Returns the targets of an arm; a random mask has no scales or groups of its own to name."""
    if plan.targets is None or (arm.role != METHOD and removes_units(plan.method)):
        return None
    return list(plan.targets)


def _begun(out: Path) -> bool:
    """Returns whether a training in the folder has left anything to go on from."""
    return any(out.glob("runs/*.json")) or any(out.glob("checkpoints/*.pt"))


def _difference(found: Any, wanted: Any) -> str:
    """Returns the first entry that differs, in words."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for name in dict.fromkeys([*wanted, *found]):
            if found.get(name) != wanted.get(name):
                return f"{name} is {found.get(name)!r} there and {wanted.get(name)!r} here"
    return f"{found!r} there and {wanted!r} here"
