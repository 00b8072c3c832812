from __future__ import annotations

import io

import pytest
from rich.console import Console

from sparsecraft.lab.report import print_summary
from sparsecraft.lab.report.arms import kl_of
from sparsecraft.lab.report.cells import row
from sparsecraft.lab.report.markers import series_key, series_of
from sparsecraft.lab.report.text import (
    headline,
    size_words,
    speed_class,
    speed_line,
    speed_summary,
    speed_words,
)


def timed(ratio, *, method="wanda", low=None, high=None):
    times = {"ms": 10 / ratio, "dense_ms": 10.0, "ratio": ratio}
    return {
        "method": method,
        "latency": {"1": {**times, "ratio_low": low, "ratio_high": high}},
    }


@pytest.mark.parametrize(
    ("ratio", "low", "high", "kind"),
    [
        (1.5, 1.2, 1.9, "faster"),
        (1.5, 0.97, 1.9, "none"),
        (1.049, None, None, "faster"),
        (1.044, None, None, "none"),
        (0.98, None, None, "none"),
        (0.8, 0.7, 0.99, "slower"),
        (0.8, 0.7, 1.1, "none"),
        (0.8, None, None, "slower"),
    ],
)
def test_speed_is_claimed_only_where_every_round_agrees(ratio, low, high, kind):
    assert speed_class(timed(ratio, low=low, high=high), "1") == kind


def test_ratio_is_dense_time_over_own_time_where_not_given():
    arm = {"method": "compact", "latency": {"1": {"ms": 5.0, "dense_ms": 10.0}}}
    assert speed_words(arm, "1") == "2.00x faster"
    assert speed_words(arm, "32") == "not timed"


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        ("wanda", "zeros alone do not make dense kernels faster"),
        ("dense int8", "int8 arithmetic"),
        ("compact", "smaller shapes"),
    ],
)
def test_no_speed_up_comes_with_its_reason(method, reason):
    line = speed_line(timed(0.98, method=method), "1")
    assert line.startswith("no speed-up here: 0.98x of dense at batch 1; ")
    assert reason in line


def test_size_is_the_smaller_form_against_plain_dense():
    dense = {"method": "dense", "bytes": {"plain": 1000, "packed": None}}
    arm = {"method": "wanda", "bytes": {"plain": 1000, "packed": 600}}
    assert size_words(arm, dense).replace("\u00a0", " ") == "600 B, 40 % smaller"


def test_headline_of_a_choice_that_was_met(record):
    words = headline(record).replace("\u00a0", " ")
    assert words.startswith("Compact, 4 blocks, int8 is 62 % smaller on disk, 2.")
    assert words.endswith(", with nDCG@10 1.8 % worse than dense.")


def test_headline_says_where_nothing_can_be_told_from_zero(record):
    record["choice"]["winner"] = "magnitude-0.3"
    assert "brings no speed-up here, with no change of nDCG@10" in headline(record)


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"winner": None}, "No arm was chosen."),
        ({"winner": "dense"}, "Stay dense"),
        ({"winner": "wanda-0.5", "met": False, "max_drop": 0.01}, "No arm stays within a drop of"),
    ],
)
def test_headline_of_other_choices(record, choice, words):
    assert headline(record | {"choice": choice}).startswith(words)


def test_speed_summary_counts_all_timed_arms(record):
    lines = speed_summary(record)
    assert lines[0] == (
        "Batch 1: 4 of 24 timed arms are faster than dense; the other 20: no speed-up here."
    )


@pytest.mark.parametrize("width", [80, 120])
def test_terminal_shows_every_arm_in_whole_lines(record, width):
    for number, arm in enumerate(record["arms"]):
        arm["label"] = f"[arm {number}]"
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_summary(record, console)
    lines = console.file.getvalue().splitlines()
    for number in range(len(record["arms"])):
        line = next(line for line in lines if f"[arm {number}]" in line)
        assert "…" not in line
    assert max(map(len, lines)) <= width
    assert sum("none" in line for line in lines) == 20
    assert any("Problem: Wanda 90 %" in line for line in lines)


def test_terminal_takes_an_empty_comparison():
    console = Console(file=io.StringIO(), width=80)
    print_summary({"arms": []}, console)
    assert "No arm was chosen." in console.file.getvalue()


def test_divergence_from_dense_is_shown_where_a_task_measures_it(record):
    def shown():
        console = Console(width=140, record=True, file=io.StringIO())
        print_summary(record, console)
        return console.export_text()

    assert " KL " not in shown()
    arm = next(arm for arm in record["arms"] if arm["method"] != "dense")
    for index, run in enumerate(arm["runs"]):
        run["extra"]["kl"] = 0.5 + index
    expected = 0.5 + (len(arm["runs"]) - 1) / 2
    assert kl_of(arm) == expected
    assert " KL " in shown()
    assert f"{expected:.4f}" in shown()
    look = series_of([arm])[series_key(arm)]
    assert f"KL to dense {expected:.4f}" in row(record, arm, look)["cells"][3]["under"]
