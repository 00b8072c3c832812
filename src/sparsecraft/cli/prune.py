"""`sparsecraft prune`: a model directory in, a sparse model directory out."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sparsecraft.cli.model_directory import (
    add_calibration,
    add_directories,
    calibration_batches,
    check_out,
    load_model,
    side_files,
)
from sparsecraft.cli.parser import Parser, add_method, flattened, method_options
from sparsecraft.cli.prune_streamed import (
    add_streaming,
    max_memory,
    memory_lines,
    needs_data,
    open_streamed,
    prune_streamed,
    streams,
)
from sparsecraft.cli.terminal import console, progress, say
from sparsecraft.core.errors import InvalidValue, OutOfMemory

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparsecraft.core.kinds import Method, WeightMethod
    from sparsecraft.model.estimate import Estimate
    from sparsecraft.model.pruning import PruneReport, PruneSummary
    from sparsecraft.model.targets import Targets

RESUME = (
    "Nothing was written to the model directory or to --out. What a run block by block has done is "
    "kept beside --out; the same command goes on with it."
)


def parser() -> Parser:
    """Returns the parser of this verb."""
    made = Parser(
        prog="sparsecraft prune",
        description=(
            "Prunes the model of a Hugging Face directory with one method and writes a directory\n"
            "that loads wherever the first one did: exact zeros, unchanged keys. Masks and\n"
            "settings lie beside it. By default the matrices inside the repeated blocks are\n"
            "pruned and everything else is left out, with the reason. Zeros alone make a model\n"
            "neither smaller on disk nor faster: `sparsecraft compare` measures that.\n"
            "A model that does not fit into memory is pruned block by block (--stream); a run\n"
            "that was interrupted goes on when the same command is given again.\n\n"
            "examples:\n"
            "  sparsecraft prune my-model --method magnitude --sparsity 0.5 --out sparse\n"
            "  sparsecraft prune my-model --method wanda --pattern 2:4 --calibration notes.txt "
            "--out sparse\n"
            "  sparsecraft prune my-model --method random --option allocation=erk --dry-run\n"
            '  sparsecraft prune my-model --targets "*.mlp.*" --targets "!*.0.*" --out sparse\n'
            "  sparsecraft prune large-model --method wanda --calibration notes.txt "
            "--max-memory 8GiB --out sparse"
        ),
    )
    made.add_argument("model", metavar="MODEL", help="model directory, or hub id")
    add_method(made, "magnitude")
    add_calibration(made)
    add_directories(made, kind="sparse")
    add_streaming(made)
    made.add_argument(
        "--statistics",
        type=Path,
        metavar="DIR",
        help="keep the statistics of the layers' inputs there; where they are already, use them, "
        "and try other settings without a new pass of the data",
    )
    made.add_argument(
        "--packed",
        action="store_true",
        help="write the weights without their zeros, smaller on disk; sparsecraft.load reads that",
    )
    made.add_argument("--again", action="store_true", help="prune on top of an earlier pruning")
    made.add_argument(
        "--dry-run",
        action="store_true",
        help="print every parameter once, with its planned density and the reason, and stop",
    )
    return made


def run(arguments: argparse.Namespace) -> int:
    """Prunes, or shows what would be pruned, and returns 0."""
    from sparsecraft.core import catalog
    from sparsecraft.model.memory import peak_bytes
    from sparsecraft.model.prunable import check_prunable
    from sparsecraft.model.pruning import check

    check_out(arguments, kind="sparse")
    method = catalog.build(arguments.method, **method_options(arguments))
    if not arguments.dry_run:
        _check_calibration(arguments, needs_data(method))
    notes = check_prunable(arguments.model, again=arguments.again)
    if streams(arguments, method):
        return _run_streamed(arguments, method)
    model = load_model(arguments)
    chosen, found = check(model, method, targets=flattened(arguments.targets))
    if arguments.dry_run:
        _show_plan(model, chosen, found)
        return 0
    batches = calibration_batches(model, arguments) if needs_data(method) else []
    _show_estimate(model, found, chosen, batches, arguments)
    report = _prune(model, chosen, arguments, batches)
    report = replace(report, notes=(*notes, *report.notes))
    _save(model, report, arguments)
    _show_report(report, model, arguments)
    for line in memory_lines(peak_bytes()):
        say(line)
    return 0


def _run_streamed(arguments: argparse.Namespace, method: Method) -> int:
    from sparsecraft.model.streaming import check_streamable

    skeleton = open_streamed(arguments)
    if arguments.dry_run:
        chosen, found = check_streamable(skeleton, method, targets=flattened(arguments.targets))
        _show_plan(skeleton.model, chosen, found)
        return 0
    report = prune_streamed(arguments, method)
    _show_report(report, skeleton.model, arguments)
    if report.resumed_at is not None:
        say(f"went on with an interrupted run at stage {report.resumed_at} of {report.stages}")
    for line in memory_lines(report.peak_bytes, report.private_bytes):
        say(line)
    return 0


def _check_calibration(arguments: argparse.Namespace, needs_data: bool) -> None:
    if needs_data and not arguments.calibration:
        raise InvalidValue(
            f"{arguments.method} looks at what flows through the model: give it text, "
            "--calibration FILE. Without data, use a method of "
            "`sparsecraft methods --without data`."
        )
    if arguments.calibration and not needs_data:
        raise InvalidValue(
            f"{arguments.method} looks at no data, so --calibration has no effect; leave it out."
        )


def _prune(
    model: nn.Module,
    method: WeightMethod,
    arguments: argparse.Namespace,
    batches: list[dict[str, Tensor]],
) -> PruneReport:
    from sparsecraft.model.pruning import prune

    with progress(method.info.name) as tell:
        return prune(
            model,
            method,
            targets=flattened(arguments.targets),
            calibration=batches,
            seed=arguments.seed,
            progress=tell,
            statistics=arguments.statistics,
        )


def _save(model: nn.Module, report: PruneReport, arguments: argparse.Namespace) -> None:
    from sparsecraft.model.checkpoints import Form, read_settings, save

    source = Path(arguments.model)
    # A model whose shapes its config cannot say stays one.
    compact = source.is_dir() and read_settings(source).get("form") == "compact"
    form: Form = "packed" if arguments.packed else "compact" if compact else "plain"
    save(
        model,
        arguments.out,
        mask=report.mask,
        settings={"pruning": report.to_json()},
        form=form,
        overwrite=arguments.overwrite,
        extras=side_files(arguments.model),
    )


def _show_plan(model: nn.Module, method: WeightMethod, targets: Targets) -> None:
    from sparsecraft.cli.prune_tables import plan

    console().print(plan(targets, method))
    total = sum(row.numel for row in targets.rows)
    say(
        f"{len(targets.rows)} parameters with {total} entries in all; the model has "
        f"{sum(p.numel() for p in model.parameters())}. {targets.numel} are targeted, "
        f"sparsity {1 - method.density:.4f} of them."
    )


def _show_estimate(
    model: nn.Module,
    targets: Targets,
    method: WeightMethod,
    batches: Sequence[Mapping[str, Tensor]],
    arguments: argparse.Namespace,
) -> None:
    from sparsecraft.lab.report.values import duration, size
    from sparsecraft.model.estimate import estimate
    from sparsecraft.model.memory import room
    from sparsecraft.model.pruning import count_tokens

    tokens = count_tokens(batches)
    needed = estimate(model, targets, method, tokens)
    data = f" calibration on {tokens} tokens about {duration(needed.seconds)}," if tokens else ""
    say(
        f"{method.info.name} on {len(targets)} matrices of {targets.numel} weights:{data} at most "
        f"{size(needed.bytes)} of memory beside the model"
    )
    left = room(max_memory(arguments))
    if left is not None and needed.bytes > left.bytes:
        raise OutOfMemory(
            f"pruning needs about {size(needed.bytes)} beside the model (statistics "
            f"{size(needed.statistics_bytes)}, hidden states of {tokens} tokens "
            f"{size(needed.hidden_bytes)}, copies of matrices {size(needed.work_bytes)}), but "
            f"{size(max(0, left.bytes))} is left: {left.limit}."
            f" {_advice(needed, method, left.bytes, tokens)}"
        )


def _advice(needed: Estimate, method: WeightMethod, left: int, tokens: int) -> str:
    """Returns the setting that would fit."""
    from sparsecraft.core.kinds import Layerwise

    fixed = needed.bytes - needed.hidden_bytes
    if tokens and fixed < left:
        return (
            f"It would fit with --max-tokens {int(tokens * (left - fixed) / needed.hidden_bytes)}."
        )
    if isinstance(method, Layerwise):
        return "Use --stream always, which has one block in memory, or a method with less to keep."
    return "Use a layer-wise method, which can work block by block (--stream always)."


def _show_report(report: PruneSummary, model: nn.Module, arguments: argparse.Namespace) -> None:
    from sparsecraft.cli.prune_tables import achieved, skipped

    out = console()
    out.print(achieved(report))
    out.print(skipped(report.targets))
    total = sum(p.numel() for p in model.parameters())
    zeros = report.targets.numel - report.kept
    say(
        f"sparsity of the targeted weights: asked {report.asked:.4f}, achieved "
        f"{report.sparsity:.4f}; of all {total} parameters: {zeros / total:.4f}"
    )
    for note in report.notes:
        say(f"note: {note}")
    if arguments.packed:
        say(f"written to {arguments.out} without its zeros; sparsecraft.load reads it")
        return
    say(
        f"written to {arguments.out}. Zeros alone make it neither smaller on disk nor faster: "
        f"`sparsecraft speed {arguments.out}` measures what they bring on this machine."
    )
