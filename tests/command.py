"""Runs the command line in this process, as a user would."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from sparsecraft.cli.main import main


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> Outcome:
    """Returns the exit code and the two outputs of `sparsecraft ARGUMENTS`."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return Outcome(code, printed.out, printed.err)


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """Returns the message of a command that must fail as a user's error: one line, no traceback."""
    outcome = run(capsys, *arguments)
    assert outcome.code == 2, outcome
    lines = outcome.err.strip().splitlines()
    assert lines[-1].startswith("error: "), outcome.err
    assert "Traceback" not in outcome.err
    return lines[-1].removeprefix("error: ")
