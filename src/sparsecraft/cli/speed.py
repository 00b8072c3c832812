"""`sparsecraft speed`: whether a saved model runs faster than dense here, and what it loses."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sparsecraft.cli.parser import Parser, fraction, names, positive
from sparsecraft.cli.terminal import console, progress, say
from sparsecraft.core.errors import InvalidValue

if TYPE_CHECKING:
    from sparsecraft.lab.speed_report import SpeedReport

RESUME = "Nothing was written; the model directory is as it was."
DTYPES = ("auto", "float32", "bfloat16")


def parser() -> Parser:
    """Returns the parser of this verb."""
    made = Parser(
        prog="sparsecraft speed",
        description=(
            "Measures a model directory, pruned, gated, packed or plain, on this machine: for\n"
            "every linear layer its dense and sparse forms, which won and why; then the whole\n"
            "model beside dense, and beside the best dense forms alone, so that a gain of smaller\n"
            "types is not taken for one of sparsity. With a prompt the model writes, and tokens a\n"
            "second and texts stand side by side. Where nothing is gained it says so. Run it\n"
            "alone: other work on the machine blurs the figures.\n\n"
            "examples:\n"
            "  sparsecraft speed sparse\n"
            '  sparsecraft speed gated --prompt "def main(" --tokens 64 --text held-out.txt\n'
            "  sparsecraft speed sparse --dense original --text held-out.txt --batch 1,8\n"
            "  sparsecraft speed encoder --threads 1 --json speed.json --report speed.html"
        ),
    )
    made.add_argument("model", type=Path, metavar="DIR", help="model directory")
    made.add_argument("--prompt", metavar="TEXT", help="what a language model goes on from")
    made.add_argument("--tokens", type=positive, default=64, help="how many it writes")
    made.add_argument(
        "--text", metavar="FILE", help="held-out UTF-8 text: what is lost against dense on it"
    )
    made.add_argument(
        "--dense",
        metavar="DIR",
        help="the original model (default: DIR itself with gates off and zeros multiplied)",
    )
    made.add_argument(
        "--batch", type=sizes, default="1,32", metavar="N,...", help="sequences at once"
    )
    made.add_argument("--threads", type=positive, metavar="N", help="of torch and the kernels")
    made.add_argument("--rounds", type=positive, default=5, help="turns of each form, at least 3")
    made.add_argument("--dtype", choices=DTYPES, default="auto", help="load as; auto: as saved")
    made.add_argument(
        "--types",
        type=names,
        default="float32,bfloat16,int8",
        metavar="TYPE,...",
        help="types that weights may be stored in",
    )
    made.add_argument(
        "--tolerance",
        type=fraction,
        default=0.02,
        help="relative error of a layer's output that a smaller type may cause",
    )
    made.add_argument("--window", type=positive, metavar="TOKENS", help="of the text at once")
    made.add_argument(
        "--windows", type=positive, default=128, metavar="N", help="of the text at most"
    )
    made.add_argument(
        "--seconds", type=positive, default=40, help="about how long packing may measure"
    )
    made.add_argument("--every", action="store_true", help="a line for every layer, like or not")
    made.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    made.add_argument("--report", type=Path, metavar="FILE", help="write an HTML page there")
    return made


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints the tables and the answer, and returns 0."""
    from sparsecraft.lab.speed import measure_speed
    from sparsecraft.lab.speed_report import SpeedSettings

    for path in (arguments.json, arguments.report):
        _check_parent(path)
    settings = SpeedSettings(
        batch_sizes=arguments.batch,
        prompt=arguments.prompt,
        tokens=arguments.tokens,
        text=arguments.text,
        dense=arguments.dense,
        dtype=arguments.dtype,
        types=arguments.types,
        tolerance=arguments.tolerance,
        window=arguments.window,
        most_windows=arguments.windows,
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        threads=arguments.threads,
    )
    with progress("speed") as tell:
        report = measure_speed(arguments.model, settings, progress=tell)
    _write(report, arguments)
    _show(report, every=arguments.every)
    return 0


def sizes(text: str) -> tuple[int, ...]:
    """Returns the batch sizes of a comma list, each once, the smallest first.

    Example:
        >>> sizes("32,1")
        (1, 32)
    """
    return tuple(sorted({positive(part) for part in names(text)}))


def _check_parent(path: Path | None) -> None:
    """Raises before the measurement if its outcome could not be written there."""
    if path is not None and not path.resolve().parent.is_dir():
        raise InvalidValue(f"{path} cannot be written: there is no folder {path.resolve().parent}")


def _write(report: SpeedReport, arguments: argparse.Namespace) -> None:
    from sparsecraft.lab.report.files import write_atomically
    from sparsecraft.lab.report.values import finite

    if arguments.json is not None:
        text = json.dumps(finite(report.to_json()), indent=1, ensure_ascii=False) + "\n"
        write_atomically(arguments.json, text)
    if arguments.report is not None:
        from sparsecraft.lab.report.speed_page import render_speed_page

        write_atomically(arguments.report, render_speed_page(report))


def _show(report: SpeedReport, *, every: bool) -> None:
    from sparsecraft.cli.speed_tables import layers, whole
    from sparsecraft.lab.speed_words import verdicts

    out = console()
    out.print(layers(report.record, every=every))
    for name, reason in grouped(report.record.left_alone).items():
        say(f"left as it is: {name}: {reason}")
    out.print(whole(report))
    for form, text in report.written.items():
        say(f"{form} wrote: {report.prompt}{text}")
    for note in report.notes:
        say(f"note: {note}")
    say(f"{report.name}, {report.origin}, {report.parameters} parameters:")
    for line in verdicts(report):
        say(f"  {line}")


def grouped(reasons: Mapping[str, str]) -> dict[str, str]:
    """Returns the reasons by name, the numbers in the names of like modules a star.

    Example:
        >>> grouped({"layers.0.experts": "fused", "layers.1.experts": "fused"})
        {'layers.*.experts': 'fused'}
    """
    return {re.sub(r"\d+", "*", name): reason for name, reason in reasons.items()}
