"""The comparison in plain words: the headline, the speed verdicts, and a table in the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sparsecraft.lab.report.arms import (
    BATCHES,
    Arm,
    Comparison,
    arms_of,
    dense_arm,
    disk_bytes,
    drop_span,
    is_dense,
    kl_of,
    label_of,
    metric_of,
    sparsity_of,
    speed_ratio,
    winner_arm,
)
from sparsecraft.lab.report.values import (
    MISSING,
    interval,
    milliseconds,
    number,
    percent,
    score,
    size,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

SPEED_UP = 1.05
SLOW_DOWN = 0.95
# A narrower terminal shows the drop without its interval, so that rows stay whole.
WIDE = 96


def speed_class(arm: Arm, batch: str) -> str:
    """Returns "reference", "untimed", "faster", "none" or "slower".

    Faster means at least 1.05 times dense, in every round of the timing; slower means less than
    0.95 times dense in every round. Everything else counts as no speed-up.
    """
    if is_dense(arm):
        return "reference"
    ratio = speed_ratio(arm, batch)
    if ratio is None:
        return "untimed"
    # Judged as it is shown, with two decimals, so that no page says "1.05x, no speed-up".
    shown = round(ratio, 2)
    lowest = number(arm, "latency", batch, "ratio_low")
    highest = number(arm, "latency", batch, "ratio_high")
    if shown >= SPEED_UP and (lowest is None or lowest > 1):
        return "faster"
    return "slower" if shown < SLOW_DOWN and (highest is None or highest < 1) else "none"


def speed_words(arm: Arm, batch: str) -> str:
    """Returns the speed against dense in two or three words."""
    kind, ratio = speed_class(arm, batch), speed_ratio(arm, batch)
    if kind == "reference":
        return "reference"
    if ratio is None:
        return "not timed"
    ending = {"faster": "faster", "slower": "slower, no speed-up", "none": "no speed-up"}[kind]
    return f"{ratio:.2f}x {ending}"


def speed_line(arm: Arm, batch: str) -> str:
    """Returns the speed against dense as a sentence, with the reason where nothing is gained.

    Example:
        >>> arm = {"method": "wanda", "latency": {"1": {"ms": 5.1, "dense_ms": 5.0}}}
        >>> print(speed_line(arm, "1"))
        no speed-up here: 0.98x of dense at batch 1; zeros alone do not make dense kernels faster
    """
    kind, ratio = speed_class(arm, batch), speed_ratio(arm, batch)
    if kind == "reference":
        return f"the reference at batch {batch}"
    if ratio is None:
        return f"not timed at batch {batch}"
    if kind == "faster":
        return f"{ratio:.2f}x as fast as dense at batch {batch}"
    return f"no speed-up here: {ratio:.2f}x of dense at batch {batch}; {_reason(arm)}"


def _reason(arm: Arm) -> str:
    method = str(arm.get("method"))
    if method.endswith("int8"):
        return "int8 arithmetic costs here as much as it saves, or more"
    if method.startswith("compact"):
        return "the smaller shapes do not pay at this size"
    return "zeros alone do not make dense kernels faster"


def size_words(arm: Arm, dense: Arm | None) -> str:
    """Returns the smallest form on disk, and how it compares with plain dense."""
    held, reference = disk_bytes(arm), number(dense, "bytes", "plain")
    if held is None or not reference or is_dense(arm):
        return size(held)
    change = 1 - held / reference
    word = "smaller" if change >= 0 else "larger"
    return f"{size(held)}, {percent(abs(change), 0)} {word}"


def drop_words(arm: Arm, metric: str) -> str:
    """Returns the change of the metric against dense, with its interval."""
    drop = drop_span(arm)
    if is_dense(arm):
        return "the reference"
    if drop.estimate is None:
        return f"change of {metric} not measured"
    return f"{metric} worse by {interval(*drop)} (negative is better)"


def headline(comparison: Comparison) -> str:
    """Returns the answer in one sentence."""
    winner, choice = winner_arm(comparison), comparison.get("choice") or {}
    if winner is None:
        return "No arm was chosen."
    if is_dense(winner):
        return "Stay dense: no sparse arm is worth it here."
    allowed = number(choice, "max_drop")
    if choice.get("met") is False:
        limit = "what was asked" if allowed is None else f"a drop of {percent(allowed)}"
        return f"No arm stays within {limit}; {label_of(winner)} comes nearest."
    metric = metric_of(comparison)
    gain = _gain(winner, dense_arm(comparison))
    return f"{label_of(winner)} {gain}{_price(winner, metric)}."


def _gain(arm: Arm, dense: Arm | None) -> str:
    """Returns what the arm brings: bytes, then speed."""
    held, reference = disk_bytes(arm), number(dense, "bytes", "plain")
    smaller = 1 - held / reference if held is not None and reference else 0.0
    gains = [f"is {percent(smaller, 0)} smaller on disk"] if smaller > 0.005 else []
    fast = [batch for batch in BATCHES if speed_class(arm, batch) == "faster"]
    timed = [batch for batch in BATCHES if speed_ratio(arm, batch) is not None]
    if fast:
        first, *rest = [f"{speed_ratio(arm, batch):.2f}x" for batch in fast]
        more = f" ({rest[0]} at batch {fast[1]})" if rest else ""
        gains.append(("" if gains else "is ") + f"{first} as fast at batch {fast[0]}{more}")
    elif timed:
        gains.append("brings no speed-up here")
    return ", ".join(gains) or "is chosen on quality alone"


def _price(arm: Arm, metric: str) -> str:
    """Returns what the arm loses, as the end of a sentence."""
    drop = drop_span(arm)
    if drop.estimate is None:
        return ""
    if drop.low is not None and drop.high is not None and drop.low <= 0 <= drop.high:
        return f", with no change of {metric} that this run can tell from zero"
    word = "worse" if drop.estimate > 0 else "better"
    return f", with {metric} {percent(abs(drop.estimate))} {word} than dense"


def speed_summary(comparison: Comparison) -> list[str]:
    """Returns one sentence for each batch size: how many arms are faster, and how many are not."""
    lines = []
    others = [arm for arm in arms_of(comparison) if not is_dense(arm)]
    for batch in BATCHES:
        timed = [arm for arm in others if speed_ratio(arm, batch) is not None]
        fast = [arm for arm in timed if speed_class(arm, batch) == "faster"]
        if not timed:
            lines.append(f"Batch {batch}: not timed.")
            continue
        line = f"Batch {batch}: {len(fast)} of {len(timed)} timed arms are faster than dense"
        if len(fast) < len(timed):
            line += f"; the other {len(timed) - len(fast)}: no speed-up here"
        lines.append(line + ".")
    return lines


def print_summary(comparison: Comparison, console: Console | None = None) -> None:
    """Prints the answer and a table of all arms to the terminal.

    Args:
        comparison: The comparison, as `write_report` takes it.
        console: Where to print; a new console on standard output where not given.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    console.print(_table(comparison, intervals=console.width >= WIDE))
    console.print(Text(headline(comparison), style="bold"))
    lines = [*((comparison.get("choice") or {}).get("lines") or ()), *speed_summary(comparison)]
    for line in lines:
        console.print(Text(str(line)))
    for problem in comparison.get("problems") or ():
        console.print(Text(f"Problem: {problem}", style="yellow"))


def _table(comparison: Comparison, *, intervals: bool) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    winner = winner_arm(comparison)
    table = Table(
        box=box.SIMPLE_HEAD,
        title=Text(str(comparison.get("title") or "Comparison")),
        title_justify="left",
    )
    drop = ("drop", "interval, %") if intervals else ("drop",)
    diverges = intervals and any(kl_of(arm) is not None for arm in arms_of(comparison))
    speeds = [f"speed-up\nbatch {batch}" for batch in BATCHES]
    table.add_column("arm", min_width=14)
    kl = ("KL",) if diverges else ()
    for name in ("zeros", metric_of(comparison), *kl, *drop, "on disk", *speeds):
        table.add_column(Text(name), justify="right", no_wrap=True)
    for arm in arms_of(comparison):
        cells = [
            ("* " if arm is winner else "") + label_of(arm),
            percent(sparsity_of(arm), 0),
            score(number(arm, "test")),
            *((score(kl_of(arm)),) if diverges else ()),
            *_drop_cells(arm)[: 1 + intervals],
            size(disk_bytes(arm)),
            *(_speed_cell(arm, batch) for batch in BATCHES),
        ]
        table.add_row(*map(Text, cells), style="bold" if arm is winner else None)
    return table


def _drop_cells(arm: Arm) -> tuple[str, str]:
    drop, _, ends = interval(*drop_span(arm)).partition(" ")
    return (MISSING, "") if is_dense(arm) else (drop, ends)


def _speed_cell(arm: Arm, batch: str) -> str:
    kind, ratio = speed_class(arm, batch), speed_ratio(arm, batch)
    if kind == "reference":
        return milliseconds(number(arm, "latency", batch, "ms"))
    if ratio is None:
        return "not timed"
    return f"{ratio:.2f}x" if kind == "faster" else f"none {ratio:.2f}x"
