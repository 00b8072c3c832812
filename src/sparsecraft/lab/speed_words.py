"""The answer of a speed report in sentences; "no speed-up here" where that is so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsecraft.lab.rounds import Rounds, verdict

if TYPE_CHECKING:
    from sparsecraft.lab.speed import SpeedReport
    from sparsecraft.lab.speed_quality import Quality


def verdicts(report: SpeedReport) -> list[str]:
    """Returns one sentence each for the speed, sparsity's part in it, the bytes and the quality."""
    lines = [speed_line(what, forms) for what, forms in speeds(report).items()]
    return [*lines, *_sparse_lines(report), _byte_line(report), *_quality_lines(report.quality)]


def speeds(report: SpeedReport) -> dict[str, dict[str, Rounds]]:
    """Returns what was timed, in words, to form to speed: more is faster."""
    found: dict[str, dict[str, Rounds]] = {}
    if report.decoding:
        found["decoding"] = {form: each.rate for form, each in report.decoding.items()}
    unit = "one token of each of" if report.kind == "decoder" else "one pass of"
    for size, forms in report.forward.items():
        what = f"{unit} {size} sequence{'s' if size > 1 else ''}"
        found[what] = {
            form: Rounds(tuple(1 / value for value in each.values)) for form, each in forms.items()
        }
    return found


def speed_line(what: str, forms: dict[str, Rounds]) -> str:
    """Returns how the packed form compares with dense, in one sentence.

    Example:
        >>> speed_line("decoding", {"dense": Rounds((1.0,) * 3), "packed": Rounds((2.0,) * 3)})
        'decoding: 2.00x as fast as dense.'
    """
    words = _compared(forms["packed"].over(forms["dense"]), "dense")
    if "best dense" in forms:
        # In one breath: what a smaller type brings must not pass for a gain of sparsity.
        ratio = forms["packed"].over(forms["best dense"])
        words += f"; from sparsity alone: {_compared(ratio, 'the best dense forms')}"
    return f"{what}: {words}."


def _sparse_lines(report: SpeedReport) -> list[str]:
    """Returns that sparsity has no part in it, where no layer computes sparsely."""
    if any("best dense" in forms for forms in speeds(report).values()):
        return []
    return [
        "no layer computes sparsely: nothing sparse was faster here, so what is gained, if "
        "anything, comes from dense forms of smaller types."
    ]


def _byte_line(report: SpeedReport) -> str:
    record = report.record
    share = record.bytes / max(record.dense_bytes, 1)
    return (
        f"weights of the linear layers in memory: {record.bytes / 1e6:.1f} MB, {share:.2f} of the "
        f"{record.dense_bytes / 1e6:.1f} MB before."
    )


def _quality_lines(quality: Quality | None) -> list[str]:
    if quality is None:
        return ["quality was not measured: give held-out text, --text FILE."]
    interval = "" if quality.low is None else f" [{quality.low:+.2%}, {quality.high:+.2%}]"
    where = f"on {quality.windows} x {quality.window} tokens ({quality.about})"
    if quality.metric != "perplexity":
        return [f"cosine to dense {quality.here:.5f} {where}."]
    kl = max(quality.kl or 0.0, 0.0)  # rounding may leave it a hair below zero
    return [
        f"perplexity {quality.here:.3f}, dense {quality.dense:.3f}: "
        f"{quality.change:+.2%}{interval}; KL to dense {kl:.4f} nats, {where}."
    ]


def _compared(ratio: Rounds, other: str) -> str:
    found = verdict(ratio)
    span = "" if ratio.low == ratio.high else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    if found == "faster":
        return f"{ratio.median:.2f}x as fast as {other}{span}"
    if found == "slower":
        return f"no speed-up here, slower than {other}: {ratio.median:.2f}x{span}"
    return f"no speed-up here: {ratio.median:.2f}x {other}{span}"
