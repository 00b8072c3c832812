"""`sparsecraft train`: a task's model made sparse while it trains, beside its controls."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsecraft.cli.parser import Parser, add_method, flattened, method_options, positive
from sparsecraft.cli.terminal import console, progress, say
from sparsecraft.core.errors import InvalidValue

if TYPE_CHECKING:
    from sparsecraft.core.kinds import InTraining
    from sparsecraft.lab.tasks.base import Task
    from sparsecraft.lab.training import TrainSettings
    from sparsecraft.lab.training_runs import Plan

RESUME = "The same command goes on from the last checkpoint in --out."
DEFAULT_STEPS = 600


def parser() -> Parser:
    """Returns the parser of this verb."""
    made = Parser(
        prog="sparsecraft train",
        description=(
            "Trains a task's model while a method makes it sparse, and beside it, on the same\n"
            "seeds and batches, what it must beat: the dense model, a narrower dense one of as\n"
            "many parameters, a random static mask of the same density, for a method that changes\n"
            "its mask one that never changes, and for one made from scores a shuffled one.\n"
            "The table has quality, sparsity asked and achieved, the operations of the whole\n"
            "training relative to dense, memory and time. The finished model has exact zeros, in\n"
            "--out/model; where whole channels or neurons have gone, a physically smaller one is\n"
            "in --out/compact. Both are timed beside dense. A stopped training goes on.\n\n"
            "examples:\n"
            "  sparsecraft train digits-mlp --method rigl --sparsity 0.9\n"
            "  sparsecraft train digits-mlp --method static --option source=snip --sparsity 95%\n"
            "  sparsecraft train digits-vit --method gradual_magnitude --sparsity 0.8 --seeds 3\n"
            "  sparsecraft train stdlib-lm --from-trained --method sr_ste --pattern 2:4\n"
            "  sparsecraft train digits-vit --method cast --optimizer adams --no-controls\n"
            "  sparsecraft train patches-resnet --method network_slimming --sparsity 0.5 \\\n"
            "      --option strength=0.01 --finetune-steps 100\n\n"
            "on several processes or machines (DDP); the table says how many took part:\n"
            "  torchrun --nproc_per_node 2 -m sparsecraft train digits-mlp --method set "
            "--sparsity 0.9\n\n"
            "`sparsecraft methods` lists the methods; those of the kind InTraining train here."
        ),
    )
    made.add_argument("task", metavar="TASK", help="name of a task; a wrong one lists them all")
    add_method(made, None)
    _training_arguments(made)
    made.add_argument(
        "--controls",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train also what the method is to be compared with",
    )
    made.add_argument("--seed", type=int, default=0, help="of weights, batches and masks")
    made.add_argument(
        "--seeds", type=positive, default=1, metavar="N", help="repetitions, from --seed on"
    )
    made.add_argument(
        "--out", type=Path, metavar="DIR", help="where all goes (default: TASK-METHOD)"
    )
    made.add_argument(
        "--checkpoint-every", type=positive, default=200, metavar="N", help="steps between two"
    )
    return made


def run(arguments: argparse.Namespace) -> int:
    """Trains the method and its controls, prints the table, writes the report, and returns 0."""
    from contextlib import nullcontext

    from sparsecraft.lab.lock import locked
    from sparsecraft.lab.training_loop import processes
    from sparsecraft.lab.training_runs import claim_folder

    plan = _plan(arguments)
    claim_folder(plan)
    main = processes().is_main_process
    with locked(plan.out) if main else nullcontext():
        found = _train(plan, shown=main)
        if main:
            _show(plan, found)
    return 0


def _training_arguments(made: Parser) -> None:
    made.add_argument(
        "--steps", type=positive, metavar="N", help="optimiser steps (default: the task's own)"
    )
    made.add_argument(
        "--batch-size", type=positive, metavar="N", help="examples (default: the task's own)"
    )
    made.add_argument(
        "--accumulate", type=positive, default=1, metavar="N", help="batches in one step"
    )
    made.add_argument(
        "--learning-rate",
        type=float,
        metavar="X",
        help="at its peak (default: the task's own for adamw)",
    )
    made.add_argument("--weight-decay", type=float, default=0.0, metavar="X", help="on matrices")
    made.add_argument(
        "--optimizer",
        metavar="sgd|adamw|adams",
        help="adamw unless the method needs another, such as cast adams",
    )
    made.add_argument(
        "--finetune-steps",
        type=positive,
        default=0,
        metavar="N",
        help="steps that the smaller model trains on after whole channels or neurons have gone",
    )
    made.add_argument(
        "--absorb-bias",
        action="store_true",
        help="fold what removed channels still give into what reads them (network_slimming)",
    )
    start = made.add_mutually_exclusive_group()
    start.add_argument(
        "--from-scratch",
        dest="start",
        action="store_const",
        const="scratch",
        help="begin with fresh weights: the default where the task has such a model",
    )
    start.add_argument(
        "--from-trained",
        dest="start",
        action="store_const",
        const="trained",
        help="begin with the task's trained dense model",
    )


def _plan(arguments: argparse.Namespace) -> Plan:
    from sparsecraft.lab.tasks import load_task
    from sparsecraft.lab.training_compact import Removal
    from sparsecraft.lab.training_runs import Plan

    method = _method(arguments)
    removal = Removal(finetune_steps=arguments.finetune_steps, absorb_bias=arguments.absorb_bias)
    removal.check(method)
    task = load_task(arguments.task)
    return Plan(
        task=task,
        method=method,
        settings=_settings(arguments, task, method),
        targets=flattened(arguments.targets),
        seeds=range(arguments.seed, arguments.seed + arguments.seeds),
        controls=arguments.controls,
        out=arguments.out or Path(f"{arguments.task}-{method.info.name}"),
        checkpoint_every=arguments.checkpoint_every,
        removal=removal,
    )


def _method(arguments: argparse.Namespace) -> InTraining:
    from sparsecraft.core import catalog
    from sparsecraft.core.kinds import InTraining

    if arguments.method is None:
        raise InvalidValue(
            "--method NAME is needed: which method shall make the model sparse? "
            "`sparsecraft methods` lists them."
        )
    method = catalog.build(arguments.method, **method_options(arguments))
    if isinstance(method, InTraining):
        return method
    info = method.info
    hint = (
        "it runs several trainings itself, from Python: see its page"
        if info.kind == "Recipe"
        else f"train under the mask that it makes: --method static --option source={info.name}"
    )
    raise InvalidValue(f"{info.name} is of the kind {info.kind} and does not train; {hint}.")


def _settings(arguments: argparse.Namespace, task: Task, method: InTraining) -> TrainSettings:
    """Returns the settings given, the task's own where it has such, defaults otherwise."""
    from sparsecraft.lab.training import TrainSettings

    own = getattr(task, "schedule", None)
    needed = method.optimizer_type
    own_optimizer = "adamw" if needed is None else needed.__name__.lower()
    optimizer = arguments.optimizer or own_optimizer
    if needed is not None and optimizer != own_optimizer:
        raise InvalidValue(
            f"{method.info.name} needs its own optimiser, which is a part of the method: leave "
            f"--optimizer {optimizer} out, or say --optimizer {own_optimizer}."
        )
    rate = arguments.learning_rate
    if rate is None and optimizer == "adamw" and own is not None:
        rate = own.learning_rate
    return TrainSettings(
        steps=arguments.steps or getattr(own, "steps", DEFAULT_STEPS),
        batch_size=arguments.batch_size or getattr(own, "batch_size", 64),
        accumulate=arguments.accumulate,
        learning_rate=rate,
        optimizer=optimizer,  # type: ignore[arg-type]
        weight_decay=arguments.weight_decay,
        start=arguments.start or ("scratch" if hasattr(task, "build") else "trained"),
    )


def _train(plan: Plan, *, shown: bool) -> dict[str, Any]:
    """Returns the summary of all trainings, the method's first, so that its errors come early."""
    from contextlib import nullcontext

    from sparsecraft.lab.training_controls import controls, label_of, settled_density
    from sparsecraft.lab.training_latency import measured_latency
    from sparsecraft.lab.training_loop import processes
    from sparsecraft.lab.training_runs import METHOD, Arm, run_arm
    from sparsecraft.lab.training_summary import summarise

    arms = [Arm(METHOD, label_of(plan.method), plan.method, plan.settings)]
    records: dict[str, list[dict[str, Any]]] = {}
    notes: list[str] = [] if plan.controls else ["the controls were left out (--no-controls)"]
    with progress("training") if shown else nullcontext() as tell:
        for place, seed in enumerate(plan.seeds):
            for arm in arms:
                records.setdefault(arm.id, []).append(run_arm(plan, arm, seed, tell))
            if place == 0 and plan.controls:
                beside, why = controls(plan, *settled_density(plan, records[METHOD][0]))
                for arm in beside:
                    records[arm.id] = [run_arm(plan, arm, seed, tell)]
                arms, notes = [*arms, *beside], [*notes, *why]
    # Last and alone: the other processes only wait, which takes none of the cores.
    latency = measured_latency(plan.out, plan.task) if shown else None
    processes().wait_for_everyone()
    return summarise(plan, arms, records, notes, latency)


def _show(plan: Plan, found: dict[str, Any]) -> None:
    """Prints the table, the notes and where everything lies; writes the report."""
    from rich.table import Table

    from sparsecraft.lab.report.training_page import verdict, words_of
    from sparsecraft.lab.training_summary import table, write_report

    heads, rows = table(found)
    # Figures downwards, trainings across: there are more of the former than a terminal is wide.
    shown = Table(*(row[0] for row in [heads, *rows]))
    for figure in zip(heads[1:], *(row[1:] for row in rows), strict=True):
        shown.add_row(*figure)
    console().print(shown)
    metric = found["task"]["metric"]
    first = found["arms"][0]
    mine = found["differences_of"]
    of = "" if mine == first["label"] else f" of {mine},"
    for difference in found["differences"]:
        say(f"{metric}{of} against {difference['against']}: {words_of(difference)}")
    say(f"training FLOPs are {found['runtime']}; memory and time are those of dense kernels")
    for each in verdict(found):
        say(f"latency {each}")
    for note in found["notes"]:
        say(f"note: {note}")
    _, page = write_report(found, plan.out)
    say(f"finished model ({first['runs'][0]['form']} form): {plan.out / 'model'}")
    if first["runs"][0].get("compact"):
        say(f"smaller model: {plan.out / 'compact'}")
    say(f"report: {page}")
