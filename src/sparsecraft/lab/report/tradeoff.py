"""The three charts: quality against milliseconds, against bytes on disk, and against sparsity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from sparsecraft.lab.report.arms import (
    BATCHES,
    Arm,
    Comparison,
    arms_of,
    dense_arm,
    disk_bytes,
    higher_is_better,
    is_dense,
    label_of,
    metric_of,
    sparsity_of,
    test_span,
    winner_arm,
)
from sparsecraft.lab.report.charts import Axis, Chart, Point, Rule, render
from sparsecraft.lab.report.markers import series_key, series_of
from sparsecraft.lab.report.quality import close_scale, full_scale, has_close_view
from sparsecraft.lab.report.scale import Scale, fitted
from sparsecraft.lab.report.text import drop_words, size_words, speed_words
from sparsecraft.lab.report.values import milliseconds, number, percent, plain_numbers, score, size


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One SVG, with the choices under which it is shown."""

    option: int
    view: str
    svg: str


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One of the three charts with its variants.

    Attributes:
        key: "ms", "bytes" or "sparsity".
        title: What stands above it.
        options: Names of the variants that the reader chooses from.
        drawings: One SVG for each variant and view.
        absent: For each variant, why some arms are not drawn; empty where all are.
        missing: For each variant, the ids of those arms.
    """

    key: str
    title: str
    options: tuple[str, ...]
    drawings: tuple[Drawing, ...]
    absent: tuple[str, ...]
    missing: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class _Variant:
    """A quantity on the horizontal axis."""

    name: str
    title: str
    value: Callable[[Arm], float | None]
    write: Callable[[float], str]
    lacking: str


def figures(comparison: Comparison) -> tuple[Figure, ...]:
    """Returns the three charts, each with the same arms."""
    return (
        _figure(comparison, "ms", "against time", _TIMES),
        _figure(comparison, "bytes", "against bytes on disk", _BYTES),
        _figure(comparison, "sparsity", "against sparsity", _SPARSITIES),
    )


def _time(batch: str) -> _Variant:
    return _Variant(
        name=f"batch {batch}",
        title=f"ms for each call at batch {batch}",
        value=lambda arm: number(arm, "latency", batch, "ms"),
        write=lambda value: f"{value:g}",
        lacking="not timed",
    )


_TIMES = tuple(map(_time, BATCHES))
_BYTES = (
    _Variant(
        name="smallest",
        title="bytes on disk, smallest form",
        value=disk_bytes,
        write=lambda value: size(value).replace(".0", ""),
        lacking="not written to disk",
    ),
    _Variant(
        name="plain",
        title="bytes on disk, plain form",
        value=lambda arm: number(arm, "bytes", "plain"),
        write=lambda value: size(value).replace(".0", ""),
        lacking="no plain form",
    ),
)
_SPARSITIES = (
    _Variant(
        name="targeted",
        title="sparsity of the targeted weights",
        value=sparsity_of,
        write=partial(percent, digits=0),
        lacking="sparsity not known",
    ),
    _Variant(
        name="all params",
        title="zero or removed, of all parameters",
        value=lambda arm: number(arm, "sparsity_all"),
        write=partial(percent, digits=0),
        lacking="sparsity not known",
    ),
)


def _figure(comparison: Comparison, key: str, title: str, variants: Sequence[_Variant]) -> Figure:
    arms = arms_of(comparison)
    drawings, absent, missing = [], [], []
    for option, variant in enumerate(variants):
        out = [arm for arm in arms if _position(arm, variant) is None]
        shown = [arm for arm in arms if _position(arm, variant) is not None]
        names = ", ".join(map(label_of, out))
        everything = "all arms" if len(out) == len(arms) else names
        absent.append(f"Not drawn ({_why(out, variant)}): {everything}." if out else "")
        missing.append(tuple(str(arm.get("id")) for arm in out))
        if not shown:
            continue
        views = {"full": full_scale(comparison)}
        if has_close_view(comparison):
            views["close"] = close_scale(comparison)
        for view, scale in views.items():
            chart = _chart(comparison, key, shown, variant, scale)
            drawings.append(Drawing(option=option, view=view, svg=render(chart)))
    return Figure(
        key=key,
        title=title,
        options=tuple(variant.name for variant in variants),
        drawings=tuple(drawings),
        absent=tuple(absent),
        missing=tuple(missing),
    )


def _position(arm: Arm, variant: _Variant) -> tuple[float, float] | None:
    across, test = variant.value(arm), number(arm, "test")
    return None if across is None or test is None else (across, test)


def _why(arms: Sequence[Arm], variant: _Variant) -> str:
    unscored = [number(arm, "test") is None for arm in arms]
    if all(unscored):
        return "no score"
    return f"{variant.lacking} or no score" if any(unscored) else variant.lacking


def _chart(
    comparison: Comparison, key: str, shown: Sequence[Arm], variant: _Variant, quality: Scale
) -> Chart:
    positions = [variant.value(arm) or 0.0 for arm in shown]
    across = (
        Scale(low=-0.03, high=1.0)
        if key == "sparsity"
        else fitted(positions, log=None, from_zero=True, pad=0.08)
    )
    metric = metric_of(comparison)
    better = "higher" if higher_is_better(comparison) else "lower"
    return Chart(
        title=f"{metric} against {variant.title}",
        x=Axis(scale=across, title=variant.title, write=variant.write),
        y=Axis(
            scale=quality,
            title=f"{metric} on the test half, {better} is better",
            write=plain_numbers(quality.ticks()),
        ),
        points=_points(comparison, shown, variant),
        rules=_rules(comparison, key, variant),
        joined=key == "sparsity",
    )


def _points(comparison: Comparison, shown: Sequence[Arm], variant: _Variant) -> list[Point]:
    looks, dense = series_of(arms_of(comparison)), dense_arm(comparison)
    keys = _labelled(comparison)
    found = []
    for arm in sorted(shown, key=lambda arm: keys.get(str(arm.get("id")), ("", -1))[1]):
        name = str(arm.get("id"))
        mean, low, high = test_span(arm, dense, higher_is_better(comparison))
        across = variant.value(arm)
        if across is None or mean is None:
            continue
        found.append(
            Point(
                arm=name,
                series=looks[series_key(arm)],
                x=across,
                y=mean,
                low=low,
                high=high,
                hint=hint(comparison, arm),
                label=keys[name][0] if name in keys else None,
            )
        )
    return found


def _labelled(comparison: Comparison) -> dict[str, tuple[str, int]]:
    """Returns the arms whose name stands in the charts, with the order in which they are drawn."""
    winner = winner_arm(comparison)
    words: dict[str, tuple[str, int]] = {}
    named: set[tuple[str, str]] = set()
    ranked = sorted(arms_of(comparison), key=lambda arm: arm is not winner)
    for arm in ranked:
        method, pattern = series_key(arm)
        known = method in ("dense", "random") or method.startswith("compact") or "int8" in method
        if arm is winner or (known and (method, pattern) not in named):
            named.add((method, pattern))
            rank = 3 if arm is winner else 2 if is_dense(arm) else 1
            short = label_of(arm) if arm is winner else method.replace("_", " ")
            words[str(arm.get("id"))] = (short if len(short) < 30 else short[:28] + "…", rank)
    return words


def _rules(comparison: Comparison, key: str, variant: _Variant) -> list[Rule]:
    dense = dense_arm(comparison)
    level = number(dense, "test")
    if level is None or dense is None:
        return []
    rules = []
    allowed = number(comparison.get("choice"), "max_drop")
    if allowed is not None:
        sign = -1.0 if higher_is_better(comparison) else 1.0
        end = level + sign * allowed * abs(level)
        rules.append(Rule(axis="y", value=level, to=end, words="", kind="allowed"))
    rules.append(Rule(axis="y", value=level, words="", kind="dense"))
    across = variant.value(dense)
    if across is not None and key != "sparsity":
        words = {"ms": "dense speed", "bytes": "dense size"}[key]
        rules.append(Rule(axis="x", value=across, words=words, kind="dense"))
    if key == "sparsity":
        rules += _knee_rules(comparison)
    return rules


def _knee_rules(comparison: Comparison) -> list[Rule]:
    looks, rules = series_of(arms_of(comparison)), []
    for knee in comparison.get("knees") or ():
        value, look = number(knee, "knee"), looks.get(series_key(knee))
        if value is None or look is None or not knee.get("has_knee"):
            continue
        words = f"Knee of {look.name}: {percent(value)}\n{knee.get('text') or ''}"
        rules.append(Rule(axis="x", value=value, words=words, kind="knee", series=look))
    return rules


def hint(comparison: Comparison, arm: Arm) -> str:
    """Returns what a reader sees on looking at an arm: its name, then one fact a line."""
    metric, dense = metric_of(comparison), dense_arm(comparison)
    lines = [label_of(arm), f"{metric} {score(number(arm, 'test'))}", drop_words(arm, metric)]
    lines.append(f"sparsity {percent(sparsity_of(arm))}")
    lines.append(size_words(arm, dense))
    for batch in BATCHES:
        took = milliseconds(number(arm, "latency", batch, "ms"))
        lines.append(f"batch {batch}: {took}, {speed_words(arm, batch)}")
    return "\n".join(lines)
