"""Whether a saved model runs faster than dense here, layer by layer and whole, and what it loses.

The model is packed: every linear layer gets the way to compute that was measured to be fastest. It
is then timed as a whole beside the dense model, and beside the best dense forms alone, so that what
smaller types bring is never counted as a gain of sparsity. Quality is that of decoding, against the
dense model on the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab.decoding import Decoding, decode_in_turns
from sparsecraft.lab.machine import environment
from sparsecraft.lab.rounds import Rounds, check_rounds, forward_in_turns
from sparsecraft.lab.speed_forms import DENSE_FORMATS, any_sparse, as_decoded, twin
from sparsecraft.lab.speed_quality import Quality, decoder_quality, encoder_quality
from sparsecraft.lab.speed_report import SpeedReport, SpeedSettings
from sparsecraft.lab.speed_subject import Subject
from sparsecraft.model.gate_hooks import installed
from sparsecraft.model.runtime import Packed, pack
from sparsecraft.model.runtime.timing import Measure, measure_in_turns

__all__ = ["SpeedReport", "SpeedSettings", "measure_speed"]

Progress = Callable[[str, int, int], None]
DENSE, BEST_DENSE, PACKED = "dense", "best dense", "packed"


def measure_speed(
    directory: str | Path,
    settings: SpeedSettings | None = None,
    *,
    measure: Measure = measure_in_turns,
    progress: Progress | None = None,
) -> SpeedReport:
    """Returns how fast the model of a directory runs here beside dense, and what it loses.

    Args:
        directory: A model directory; plain, pruned, gated or packed.
        settings: What is measured.
        measure: How packing times its candidates.
        progress: Called with (stage, done, total).

    Raises:
        InvalidValue: For settings that do not fit the model: a prompt for an encoder, one that
            does not fit the context, a text that is too short, another dense model.
        CheckpointError: If a directory cannot be read.
    """
    settings = settings or SpeedSettings()
    check_rounds(settings.rounds)
    with _threads(settings.threads):
        return _measured(Subject(Path(directory), settings), measure, progress or _silent)


def _measured(subject: Subject, measure: Measure, tell: Progress) -> SpeedReport:
    """Packs, times and judges."""
    settings = subject.settings
    packed = _packed(subject, twin(subject.model), None, measure, tell)
    forms: dict[str, nn.Module] = {DENSE: subject.dense}
    if any_sparse(packed.record):
        whole = twin(subject.whole)
        forms[BEST_DENSE] = _packed(subject, whole, DENSE_FORMATS, measure, tell).model
    forms[PACKED] = packed.model
    decoding = _decoding(subject, forms, tell)
    forward = _forward(subject, forms, tell)
    quality = _quality(subject, packed.model, decoding, tell)
    return SpeedReport(
        name=subject.directory.name,
        kind="decoder" if subject.decoder else "encoder",
        parameters=sum(p.numel() for p in subject.model.parameters()),
        origin=subject.origin(),
        record=packed.record,
        forward=forward,
        decoding=decoding,
        prompt=settings.prompt,
        written={name: subject.decode(found.ids[0]) for name, found in decoding.items()},
        quality=quality,
        notes=(*subject.notes, *packed.record.notes),
        environment=environment(dtype=str(subject.model.dtype).removeprefix("torch.")),
    )


def _packed(
    subject: Subject,
    model: nn.Module,
    formats: tuple[str, ...] | None,
    measure: Measure,
    tell: Progress,
) -> Packed:
    stage = "packing" if formats is None else "packing the best dense forms"
    return pack(
        model,
        batch_sizes=subject.rows,
        dtypes=subject.settings.types,
        tolerance=subject.settings.tolerance,
        formats=formats,
        example=subject.example,
        seconds=subject.settings.seconds,
        keep_original=False,
        measure=measure,
        progress=lambda _, done, total: tell(stage, done, total),
    )


def _decoding(
    subject: Subject, forms: Mapping[str, nn.Module], tell: Progress
) -> dict[str, Decoding]:
    if subject.prompt is None:
        return {}
    return decode_in_turns(
        forms,
        subject.prompt[None],
        subject.settings.tokens,
        rounds=subject.settings.rounds,
        progress=lambda done, total: tell("decoding", done, total),
    )


def _forward(
    subject: Subject, forms: Mapping[str, nn.Module], tell: Progress
) -> dict[int, dict[str, Rounds]]:
    found = {}
    for size in subject.settings.batch_sizes:
        stage = f"batch {size}"
        found[size] = forward_in_turns(
            forms,
            subject.inputs(size),
            rounds=subject.settings.rounds,
            progress=lambda done, total, stage=stage: tell(stage, done, total),  # type: ignore[misc]
        )
    return found


def _quality(
    subject: Subject, packed: nn.Module, decoding: Mapping[str, Decoding], tell: Progress
) -> Quality | None:
    if not subject.decoder:
        if subject.text is None:
            return None
        return encoder_quality(subject.dense, packed, subject.encoder_batches(), subject.about)
    windows, about = subject.windows, subject.about
    if windows is None and subject.prompt is not None:
        windows = torch.cat([subject.prompt, decoding[DENSE].ids[0]])[None]
        about = "the prompt and what dense wrote; give a text for more than an impression"
    if windows is None:
        return None
    form = as_decoded(subject.model, packed)
    subject.notes += _gate_notes(len(installed(subject.model)), len(installed(form)))
    return decoder_quality(
        subject.dense,
        form,
        windows,
        about,
        lambda done, total: tell("quality", done, total),
    )


def _gate_notes(gates: int, used: int) -> list[str]:
    """Returns what must be known of a gated model's quality."""
    notes = []
    if used:
        notes.append(
            "quality is that of decoding: gates act on every token but the first hundredth of a "
            "window; prompts are computed whole and lose less"
        )
    if used < gates:
        notes.append(
            f"{gates - used} of {gates} gates are not used, because dense is faster there; what "
            "they would cost in quality is not in the figures"
        )
    return notes


def _silent(stage: str, done: int, total: int) -> None:
    """Tells nobody."""


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Sets the number of threads for a while."""
    before = torch.get_num_threads()
    if count is not None:
        if count < 1:
            raise InvalidValue(f"threads={count} is not allowed: give at least 1")
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
