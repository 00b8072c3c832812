"""The trainings of a method and of its controls: which ones, and kept so that a kill costs little.

Dense training and random static masks of the same density always stand beside the method; one that
changes its mask also has its static twin, which starts alike and never changes (Liu and Wang, 2023,
lessons 5 and 7). All arms share seeds, batches, optimiser and schedule.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue, SparsityError
from sparsecraft.core.kinds import InTraining
from sparsecraft.core.patterns import Unstructured
from sparsecraft.lab.report.values import finite
from sparsecraft.lab.tasks.base import Task
from sparsecraft.lab.training import Trained, TrainSettings, train_task
from sparsecraft.lab.training_loop import processes
from sparsecraft.lab.training_record import record
from sparsecraft.methods.weights.random import Random
from sparsecraft.methods.weights.static import Static, static_twin
from sparsecraft.model.checkpoints import CONFIG, TRAINING_SETTINGS, save
from sparsecraft.model.files import refuse_existing, write_atomic

SETTINGS = "train.json"
METHOD, DENSE, RANDOM, TWIN = "method", "dense", "random static", "static twin"
Tell = Callable[[str, int, int], None]
"""Called with (arm and seed, steps done, steps of all arms and seeds)."""


@dataclass(frozen=True)
class Arm:
    """One kind of training.

    Args:
        role: "method", "dense", "random static" or "static twin".
        label: For the reader.
        method: None trains dense.
        settings: How it is trained.
    """

    role: str
    label: str
    method: InTraining | None
    settings: TrainSettings

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
    """

    task: Task
    method: InTraining
    settings: TrainSettings
    targets: Sequence[str] | None
    seeds: Sequence[int]
    controls: bool
    out: Path
    checkpoint_every: int = 500

    def identity(self) -> dict[str, Any]:
        """Returns what must be equal for the trainings in a folder to be taken up."""
        return {
            "task": self.task.name,
            "task_fingerprint": self.task.fingerprint,
            "method": catalog.describe(self.method),
            "targets": None if self.targets is None else list(self.targets),
            "settings": {**asdict(self.settings), "learning_rate": self.settings.peak},
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
                raise InvalidValue(
                    f"{plan.out} holds trainings with another {name.replace('_', ' ')}: "
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


def controls(plan: Plan, sparsity: float) -> tuple[list[Arm], list[str]]:
    """Returns the arms beside the method, and a note for each one that it cannot have.

    Args:
        plan: With the method.
        sparsity: What the method asks for, or else what it reached.
    """
    notes: list[str] = []
    settings = _with_plain_optimizer(plan.settings, notes)
    if "teacher" in plan.method.captures:
        notes.append(f"{plan.method.info.name} learns from a dense teacher, the controls do not")
    arms = [Arm(DENSE, "dense", None, settings)]
    if sparsity <= 0:
        notes.append(
            f"{plan.method.info.name} leaves no zeros: no sparse control is of its density"
        )
        return arms, notes
    random = random_static(plan.method, sparsity)
    if isinstance(plan.method, Static) and _same_start(plan.method, random):
        notes.append("the method is itself the random static control")
        return arms, notes
    twin = _twin(plan.method, notes)
    label = f"random static, {sparsity:.0%} zeros"
    if twin is not None and _same_start(twin, random):
        arms.append(Arm(RANDOM, f"{label}: the static twin too", random, settings))
        return arms, notes
    arms.append(Arm(RANDOM, label, random, settings))
    if twin is not None:
        arms.append(Arm(TWIN, f"{plan.method.info.name}'s static twin", twin, settings))
    return arms, notes


def random_static(method: InTraining, sparsity: float) -> Static:
    """Returns random pruning before training with the method's density, pattern and allocation.

    A method that knows no allocation is compared with ERK densities.
    """
    pattern = getattr(method, "pattern", Unstructured())
    if pattern.fixed_density is not None:
        return Static(source=Random(pattern=pattern))
    allocation = getattr(method, "allocation", None)
    if allocation is None:
        return Static(sparsity=sparsity, pattern=pattern)
    return Static(source=Random(sparsity=sparsity, pattern=pattern, allocation=allocation))


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

    trained = train_task(
        plan.task,
        arm.method,
        arm.settings,
        seed=seed,
        targets=None if plan.targets is None else list(plan.targets),
        checkpoint=checkpoint,
        checkpoint_every=plan.checkpoint_every,
        progress=progress,
    )
    found = finite({"seed": seed, **record(plan.task, trained, arm.settings)})
    process = processes()
    if process.is_main_process:
        if arm.role == METHOD and seed == plan.seeds[0]:
            save_model(plan, trained)
        write_atomic(kept, json.dumps(found, indent=1, allow_nan=False))
        checkpoint.unlink(missing_ok=True)
    process.wait_for_everyone()
    return found


def save_model(plan: Plan, trained: Trained) -> Path:
    """Writes the finished model of the first seed into `out/model`; its form is in the settings."""
    report = trained.report
    assert report is not None
    return save(
        trained.model.cpu(),
        plan.out / "model",
        mask=report.mask,
        settings={"training": report.to_json(), "task": plan.task.name},
        form=report.form,  # type: ignore[arg-type]
        overwrite=True,
        extras=plan.task.save_extras,
    )


def _twin(method: InTraining, notes: list[str]) -> Static | None:
    if method.info.taxonomy.mask == "static":
        return None
    try:
        return static_twin(method)
    except SparsityError as error:
        notes.append(str(error))
        return None


def _same_start(first: Static, second: Static) -> bool:
    return catalog.describe(first.start()) == catalog.describe(second.start())


def _with_plain_optimizer(settings: TrainSettings, notes: list[str]) -> TrainSettings:
    """Returns the settings for arms that AdamS would refuse, since they have nothing to pull."""
    if settings.optimizer != "adams":
        return settings
    notes.append("the controls train with adamw: adams without masks to pull at is the same rule")
    return TrainSettings(
        **{**asdict(settings), "optimizer": "adamw", "learning_rate": settings.peak}
    )


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
