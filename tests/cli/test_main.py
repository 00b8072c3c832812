"""The command as a whole: help without torch, errors in one line, exit codes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from tests.command import refused, run
from tests.models import save_directory, tiny_llama

import sparsecraft
from sparsecraft.cli.main import VERBS, main


def test_help_version_and_typos_do_not_import_torch():
    script = """
        import sys
        from sparsecraft.cli.main import main
        codes = [main(["--help"]), main(["--version"]), main([]), main(["prun"])]
        heavy = {"torch", "numpy", "transformers", "rich"} & set(sys.modules)
        print("codes", codes, "heavy", sorted(heavy))
    """
    code = "\n".join(line[8:] for line in script.splitlines())
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "codes [0, 0, 0, 2] heavy []"


def test_overview_names_every_verb(capsys):
    shown = run(capsys, "--help").out
    listed = [
        line.split()[0]
        for line in shown.splitlines()
        if line.startswith("  ") and line[2:3].isalpha()
    ]
    assert set(VERBS) <= set(listed)


@pytest.mark.parametrize("verb", list(VERBS))
def test_each_verb_explains_itself(capsys, verb):
    outcome = run(capsys, verb, "--help")
    assert outcome.code == 0
    assert f"usage: sparsecraft {verb}" in outcome.out
    assert re.search(r"examples.*:\n  sparsecraft", outcome.out)
    assert "default: None" not in outcome.out


def test_version(capsys):
    assert run(capsys, "--version").out == f"sparsecraft {sparsecraft.__version__}\n"


def test_unknown_command_and_option_get_the_nearest(capsys):
    assert "Did you mean 'compare'?" in refused(capsys, "compar")
    assert "Did you mean --budget" in refused(capsys, "reproduce", "13", "--budgt", "smoke")


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("SPARSECRAFT_DEBUG", "1")
    with pytest.raises(sparsecraft.SparsityError):
        main(["prune", "nowhere"])


def test_module_is_the_command():
    command = [sys.executable, "-m", "sparsecraft", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("sparsecraft ")


def test_interruption_says_how_to_resume(tmp_path):
    pipe = tmp_path / "text"
    os.mkfifo(pipe)
    # Reading the calibration text from a pipe waits until this test interrupts it.
    model = save_directory(tiny_llama(), tmp_path / "model")
    command = [sys.executable, "-m", "sparsecraft", "prune", str(model), "--method", "wanda"]
    command += ["--calibration", str(pipe), "--out", str(tmp_path / "out")]
    # Where the tests run in the background the shell ignores interrupts, and children inherit that.
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    writer = _open_when_read(pipe, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    os.close(writer)
    assert process.returncode == 130
    assert "interrupted. Nothing was written" in err
    assert "Traceback" not in err


def _open_when_read(pipe, process) -> int:
    """Returns the writing end, once the command has begun to read."""
    while process.poll() is None:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            time.sleep(0.05)
    raise AssertionError(process.stderr.read())
