"""`sparsecraft gate`: a model directory in, a directory with activation gates out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsecraft.cli.model_directory import (
    add_calibration,
    add_directories,
    calibration_batches,
    check_out,
    load_model,
    side_files,
)
from sparsecraft.cli.parser import Parser, add_method, flattened, method_options
from sparsecraft.cli.terminal import console, progress, say
from sparsecraft.core.errors import InvalidValue

if TYPE_CHECKING:
    from torch import Tensor, nn

    from sparsecraft.core.kinds import Gate
    from sparsecraft.model.gating import Gated

RESUME = "Nothing was written; the model directory is as it was."
_SHORT = ("rule", "allocation", "prefill")


def parser() -> Parser:
    """Returns the parser of this verb."""
    made = Parser(
        prog="sparsecraft gate",
        description=(
            "Puts gates on the activations of a Hugging Face model: of every token, each matrix\n"
            "sees only the entries that matter, so the columns of the others need not be read.\n"
            "Nothing is trained. The directory that comes out holds thresholds, counts, norms\n"
            "and, where the method rotates the model, the rotated weights; `sparsecraft.load`\n"
            "reads it without calibrating again. Masks alone bring no speed: `sparsecraft speed\n"
            "DIR` measures kernels that skip.\n\n"
            "examples:\n"
            "  sparsecraft gate my-llama --method wina --sparsity 0.65 --calibration notes.txt "
            "--out gated\n"
            "  sparsecraft gate my-llama --method teal --sparsity 50% --calibration notes.txt \\\n"
            "      --allocation greedy --held-out other.txt --out gated\n"
            "  sparsecraft gate my-llama --method cats --calibration notes.txt --out gated\n"
            "  sparsecraft gate my-encoder --method wina --no-rotation --out gated\n"
            "  sparsecraft gate my-llama --sparsity 0.5 --dry-run"
        ),
    )
    made.add_argument("model", metavar="MODEL", help="model directory, or hub id")
    add_method(made, "wina", pattern=False)
    made.add_argument(
        "--rule", help="topk: an exact count of every token; threshold: fixed on the calibration"
    )
    made.add_argument(
        "--allocation", help="uniform, or greedy: shared within each block by its output's error"
    )
    made.add_argument(
        "--prefill", help="share of a prompt's tokens that is gated, from the end (1: all)"
    )
    made.add_argument(
        "--no-rotation",
        action="store_true",
        help="leave the model as it is; needed for models with LayerNorm",
    )
    add_calibration(made)
    made.add_argument(
        "--held-out",
        metavar="TEXT",
        help="UTF-8 text on which the sparsity is measured, other than the calibration text",
    )
    add_directories(made, kind="gated")
    made.add_argument(
        "--dry-run",
        action="store_true",
        help="print every place that would be gated and everything left out, and stop",
    )
    return made


def run(arguments: argparse.Namespace) -> int:
    """Gates a model, or shows what would be gated, and returns 0."""
    from sparsecraft.core import catalog
    from sparsecraft.model.gating import check
    from sparsecraft.model.prunable import refuse_quantised

    check_out(arguments, kind="gated")
    method = catalog.build(arguments.method, **_options(arguments))
    refuse_quantised(Path(arguments.model), "gate")
    _refuse_shapes(arguments)
    model = load_model(arguments)
    targets = flattened(arguments.targets)
    calibrated = arguments.dry_run or bool(arguments.calibration)
    chosen, places = check(model, method, targets=targets, calibrated=calibrated)
    if arguments.dry_run:
        from sparsecraft.cli.gate_tables import planned

        console().print(planned(places, chosen))
        say(f"{len(places)} gates; {sum(p.numel for p in places)} weights behind them")
        return 0
    batches = calibration_batches(model, arguments) if arguments.calibration else []
    gated = _gate(model, chosen, arguments, batches)
    _save(gated, arguments)
    _show_report(gated, arguments)
    return 0


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the method's settings, each given once."""
    from sparsecraft.core import catalog

    options = method_options(arguments)
    for key in _SHORT:
        value = getattr(arguments, key)
        if value is not None and key in options:
            raise InvalidValue(f"{key} is given twice; give it once")
        if value is not None:
            options[key] = value
    if arguments.no_rotation:
        if "transform" not in catalog.get(arguments.method).options:
            raise InvalidValue(
                f"{arguments.method} rotates nothing, so --no-rotation has no effect; leave it out."
            )
        options["transform"] = False
    return options


def _refuse_shapes(arguments: argparse.Namespace) -> None:
    """Raises InvalidValue for a directory whose form cannot hold gates too."""
    from sparsecraft.model.checkpoints import read_settings

    source = Path(arguments.model)
    form = read_settings(source).get("form") if source.is_dir() else None
    if form in ("compact", "packed"):
        raise InvalidValue(
            f"{source} is in the {form} form, which cannot hold gates beside what it has. Gate the "
            "model that it was made from."
        )


def _gate(
    model: nn.Module,
    method: Gate,
    arguments: argparse.Namespace,
    batches: list[dict[str, Tensor]],
) -> Gated:
    from sparsecraft.model.gating import gate

    with progress(method.info.name) as tell:
        return gate(
            model,
            method,
            targets=flattened(arguments.targets),
            calibration=batches,
            seed=arguments.seed,
            progress=tell,
        )


def _save(gated: Gated, arguments: argparse.Namespace) -> None:
    from sparsecraft.model.checkpoints import load_mask, read_settings, save

    source = Path(arguments.model)
    own = ("version", "form", "augmentations", "modules", "gates")
    before = read_settings(source) if source.is_dir() else {}
    kept = {key: value for key, value in before.items() if key not in own}
    save(
        gated.model,
        arguments.out,
        mask=load_mask(source) if source.is_dir() else None,
        settings={**kept, "gating": gated.report.to_json()},
        form="augmented",
        overwrite=arguments.overwrite,
        extras=side_files(arguments.model),
    )


def _show_report(gated: Gated, arguments: argparse.Namespace) -> None:
    from sparsecraft.cli.gate_tables import achieved, skipped

    report = gated.report
    out = console()
    out.print(achieved(report.rows))
    out.print(skipped(report.skipped))
    say(f"asked sparsity {report.asked:.4f}, weighted by the weights behind each gate")
    if report.sparsity is not None:
        _say_measured("the calibration text", report.sparsity, report.whole_text, report.flops)
    if arguments.held_out:
        found = _held_out(gated.model, arguments)
        _say_measured("the held-out text", found.sparsity, found.whole_text, found.flops)
    for name, rows in report.searches.items():
        say(
            f"{name}: greedy error {rows[-1].error:.4g}, uniform {rows[-1].uniform_error:.4g} at "
            f"sparsity {rows[-1].effective:.4f}"
        )
    for note in report.notes:
        say(f"note: {note}")
    say(f"written to {arguments.out}; `sparsecraft speed {arguments.out}` measures it here")


def _held_out(model: nn.Module, arguments: argparse.Namespace) -> Any:
    from sparsecraft.model.gating import sparsity_report

    other = argparse.Namespace(**{**vars(arguments), "calibration": arguments.held_out})
    return sparsity_report(model, calibration_batches(model, other))


def _say_measured(
    where: str, sparsity: float | None, whole_text: float | None, flops: tuple[int, int]
) -> None:
    needed, dense = flops
    say(
        f"measured on {where}: {sparsity:.4f} of gated tokens (all in decoding), "
        f"{whole_text:.4f} of the whole text; a decoded token needs {needed} of {dense} "
        f"operations behind gates ({needed / dense:.1%})"
    )
