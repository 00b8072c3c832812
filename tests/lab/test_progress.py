import io

import pytest
from rich.console import Console

from sparsecraft.lab.progress import WorkBar


def bar(pieces: dict[str, float], *, show: bool = True) -> tuple[WorkBar, io.StringIO]:
    stream = io.StringIO()
    return WorkBar(pieces, show=show, console=Console(file=stream, width=200)), stream


def test_work_is_weighed_not_counted():
    work, _ = bar({"short": 1.0, "long": 9.0})
    with work.piece("short", "short"):
        pass
    assert work.finished == 1.0
    with work.piece("long", "long") as step:
        step(1, 3)
        assert work.finished == pytest.approx(4.0)
        step(5, 3)  # more than all of it is all of it
        assert work.finished == pytest.approx(10.0)
    assert work.finished == 10.0
    assert work.left == 0.0


def test_the_time_left_follows_the_pace(monkeypatch):
    clock = iter([0.0, 20.0])
    monkeypatch.setattr("sparsecraft.lab.progress.time.monotonic", lambda: next(clock))
    work, _ = bar({"a": 10.0, "b": 30.0}, show=False)
    work._done.append("a")
    assert work.left == 60.0  # twice as slow as expected, so 2 * 30


def test_reweighing_keeps_what_is_done():
    work, _ = bar({"a": 10.0, "b": 10.0})
    with work.piece("a", "a"):
        pass
    work.reweigh({"a": 2.0, "b": 2.0})
    assert work.finished == 2.0


def test_without_a_terminal_each_piece_is_a_line():
    work, stream = bar({"a": 1.0, "b": 1.0})
    with work:
        with work.piece("a", "first [x]"):
            pass
        work.complete("b", "second")
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("[1/2] first [x], ")
    assert lines[0].endswith("left")
    assert lines[1] == "[2/2] second"


def test_nothing_is_printed_where_it_was_not_asked_for():
    work, stream = bar({"a": 1.0}, show=False)
    with work, work.piece("a", "a"):
        pass
    assert stream.getvalue() == ""
