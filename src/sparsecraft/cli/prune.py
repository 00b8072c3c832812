"""`sparsecraft prune`: a model directory in, a sparse model directory out."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsecraft.cli.parser import Parser, add_method, flattened, method_options, positive
from sparsecraft.cli.terminal import console, progress, say
from sparsecraft.core.errors import InvalidValue

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from sparsecraft.core.kinds import WeightMethod
    from sparsecraft.model.pruning import PruneReport
    from sparsecraft.model.targets import Targets

RESUME = "Nothing was written; the model directory is as it was."
DTYPES = ("auto", "float32", "bfloat16", "float16")
LONGEST_WINDOW = 512
# What belongs to a model beside its weights and config: tokenizer, processor, generation settings.
_SIDE_FILES = (".json", ".txt", ".model", ".jinja")


def parser() -> Parser:
    """Returns the parser of this verb."""
    made = Parser(
        prog="sparsecraft prune",
        description=(
            "Prunes the model of a Hugging Face directory with one method and writes a directory\n"
            "that loads wherever the first one did: exact zeros, unchanged keys. Masks and\n"
            "settings lie beside it. By default the matrices inside the repeated blocks are\n"
            "pruned and everything else is left out, with the reason. Zeros alone make a model\n"
            "neither smaller on disk nor faster: `sparsecraft compare` measures that.\n\n"
            "examples:\n"
            "  sparsecraft prune my-model --method magnitude --sparsity 0.5 --out sparse\n"
            "  sparsecraft prune my-model --method wanda --pattern 2:4 --calibration notes.txt "
            "--out sparse\n"
            "  sparsecraft prune my-model --method random --option allocation=erk --dry-run\n"
            '  sparsecraft prune my-model --targets "*.mlp.*" --targets "!*.0.*" --out sparse'
        ),
    )
    made.add_argument("model", metavar="MODEL", help="model directory, or hub id")
    add_method(made, "magnitude")
    made.add_argument("--calibration", metavar="TEXT", help="UTF-8 text for methods that need data")
    made.add_argument(
        "--max-tokens", type=positive, default=16384, help="calibration tokens at most"
    )
    made.add_argument(
        "--window",
        type=positive,
        metavar="TOKENS",
        help=f"calibration tokens in a row (default: what the model reads, at most "
        f"{LONGEST_WINDOW})",
    )
    made.add_argument(
        "--statistics",
        type=Path,
        metavar="DIR",
        help="keep the statistics of the layers' inputs there; where they are already, use them, "
        "and try other settings without a new pass of the data",
    )
    made.add_argument("--seed", type=int, default=0, help="of everything random")
    made.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="of the weights; auto: as they are saved"
    )
    made.add_argument("--out", type=Path, metavar="DIR", help="where the sparse model goes")
    made.add_argument("--overwrite", action="store_true", help="replace --out if it exists")
    made.add_argument(
        "--dry-run",
        action="store_true",
        help="print every parameter once, with its planned density and the reason, and stop",
    )
    made.add_argument(
        "--allow-pickle",
        action="store_true",
        help="load weights that exist only as a pickle, which can run any code",
    )
    return made


def run(arguments: argparse.Namespace) -> int:
    """Prunes, or shows what would be pruned, and returns 0."""
    from sparsecraft.core import catalog
    from sparsecraft.model.files import refuse_existing
    from sparsecraft.model.pruning import check

    if arguments.out is not None:
        refuse_existing(arguments.out, overwrite=arguments.overwrite)
    elif not arguments.dry_run:
        raise InvalidValue("--out DIR is needed: where shall the sparse model go? (or --dry-run)")
    method = catalog.build(arguments.method, **method_options(arguments))
    needs_data = _needs_data(method)
    if not arguments.dry_run:
        _check_calibration(arguments, needs_data)
    model = _load(arguments)
    chosen, found = check(model, method, targets=flattened(arguments.targets))
    if arguments.dry_run:
        _show_plan(model, chosen, found)
        return 0
    batches = _calibration(model, arguments) if needs_data else []
    _show_estimate(model, found, chosen, batches)
    report = _prune(model, chosen, arguments, batches)
    _save(model, report, arguments)
    _show_report(report, model, arguments)
    return 0


def _needs_data(method: Any) -> bool:
    return bool(getattr(method, "statistics", ()) or getattr(method, "needs_batches", False))


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


def _load(arguments: argparse.Namespace) -> nn.Module:
    from sparsecraft.model.checkpoints import load_pretrained

    dtype = _dtype(arguments.model, arguments.dtype)
    return load_pretrained(arguments.model, dtype=dtype, allow_pickle=arguments.allow_pickle)


def _dtype(source: str, asked: str) -> torch.dtype:
    import torch

    from sparsecraft.lab.tasks.pretrained import transformers_library

    if asked != "auto":
        return getattr(torch, asked)
    try:
        return (
            transformers_library("Pruning a model directory")
            .AutoConfig.from_pretrained(source)
            .dtype
            or torch.float32
        )
    except (OSError, ValueError):
        return torch.float32  # load_pretrained says what is wrong with the directory


def _calibration(model: nn.Module, arguments: argparse.Namespace) -> list[dict[str, Tensor]]:
    from sparsecraft.lab.tasks.pretrained import load_tokenizer
    from sparsecraft.model.calibration_text import read_text, tokenize_text

    text = read_text(arguments.calibration)
    try:
        tokenizer = load_tokenizer(arguments.model)
    except (OSError, ValueError) as error:
        raise InvalidValue(
            f"{arguments.model} has no tokenizer, so the text cannot be read to the model. Put "
            "tokenizer.json there, or prune from Python with your own calibration batches."
        ) from error
    window = arguments.window or min(_reads(model), LONGEST_WINDOW, arguments.max_tokens)
    return tokenize_text(tokenizer, text, window=window, max_tokens=arguments.max_tokens)


def _reads(model: nn.Module) -> int:
    """Returns how many tokens the model can read at once."""
    return getattr(getattr(model, "config", None), "max_position_embeddings", LONGEST_WINDOW)


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
    from sparsecraft.model.checkpoints import read_settings, save

    source = Path(arguments.model)
    # A model whose shapes its config cannot say stays one.
    compact = source.is_dir() and read_settings(source).get("form") == "compact"
    save(
        model,
        arguments.out,
        mask=report.mask,
        settings={"pruning": report.to_json()},
        form="compact" if compact else "plain",
        overwrite=arguments.overwrite,
        extras=_side_files(arguments.model),
    )


def _side_files(source: str) -> Callable[[Path], None]:
    """Returns what copies the tokenizer and the like into the new directory."""

    def copy(folder: Path) -> None:
        root = Path(source)
        if not root.is_dir():
            from sparsecraft.lab.tasks.pretrained import load_tokenizer

            load_tokenizer(source).save_pretrained(str(folder))
            return
        # One level down lie the modules of sentence-transformers ("1_Pooling/config.json").
        for path in [*root.glob("*"), *root.glob("[0-9]*_*/*")]:
            target = folder / path.relative_to(root)
            wanted = path.suffix in _SIDE_FILES and not path.name.endswith(".index.json")
            if wanted and path.is_file() and not target.exists():
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, target)

    return copy


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
) -> None:
    from sparsecraft.lab.report.values import duration, size
    from sparsecraft.model.estimate import estimate
    from sparsecraft.model.pruning import count_tokens

    tokens = count_tokens(batches)
    needed = estimate(model, targets, method, tokens)
    data = f" calibration on {tokens} tokens about {duration(needed.seconds)}," if tokens else ""
    say(
        f"{method.info.name} on {len(targets)} matrices of {targets.numel} weights:{data} at most "
        f"{size(needed.bytes)} of memory beside the model"
    )


def _show_report(report: PruneReport, model: nn.Module, arguments: argparse.Namespace) -> None:
    from sparsecraft.cli.prune_tables import achieved, skipped

    out = console()
    out.print(achieved(report))
    out.print(skipped(report.targets))
    total = sum(p.numel() for p in model.parameters())
    zeros = report.mask.numel - report.mask.kept
    say(
        f"sparsity of the targeted weights: asked {report.asked:.4f}, achieved "
        f"{report.sparsity:.4f}; of all {total} parameters: {zeros / total:.4f}"
    )
    for note in report.notes:
        say(f"note: {note}")
    say(
        f"written to {arguments.out}. Zeros alone make it neither smaller on disk nor faster: "
        "`sparsecraft compare` measures what they bring on this machine."
    )
