"""A run that is killed at any write goes on to the same bytes; a full disk loses nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.models import batches_for, tiny_llama

from sparsecraft.core.errors import CheckpointError, OutOfMemory
from sparsecraft.model.checkpoints import quiet
from sparsecraft.model.streaming import prune_directory, run

MODEL = tiny_llama()
OPTIONS = {"calibration": batches_for(MODEL), "targets": ["*.mlp.*"], "sparsity": 0.5}
CHANGES = ("seconds", "resumed_at", "peak_bytes", "private_bytes")
"""What a report says of the run and not of its outcome."""


@pytest.fixture
def source(tmp_path) -> Path:
    with quiet():
        MODEL.save_pretrained(str(tmp_path / "dense"), max_shard_size="40KB")
    return tmp_path / "dense"


def contents(folder: Path) -> dict[str, bytes]:
    """Returns every file of a folder; of the settings, what the outcome decides."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    settings = json.loads(found["sparsecraft_config.json"])
    for name in CHANGES:
        del settings["pruning"][name]
    return {**found, "sparsecraft_config.json": json.dumps(settings).encode()}


def test_killed_at_any_write(source, tmp_path):
    script = """
        import os, shutil, signal, sys
        from pathlib import Path
        from tests.model.streaming.test_interrupted import OPTIONS, contents
        from sparsecraft.model.streaming import prune_directory

        source, work = Path(sys.argv[1]), Path(sys.argv[2])
        plain = os.pwrite
        os.fsync = lambda handle: None  # only a power cut needs it

        def die_at(n):
            seen = 0

            def due():
                nonlocal seen
                seen += 1
                return seen == n

            def half(handle, data, offset):
                if due():
                    plain(handle, data[: len(data) // 2], offset)
                    os.kill(os.getpid(), signal.SIGKILL)
                return plain(handle, data, offset)

            def hook(event, args):
                path = os.fspath(args[0]) if args and isinstance(args[0], (str, Path)) else ""
                moves = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir")
                if moves and path.startswith(str(work)) and due():
                    os.kill(os.getpid(), signal.SIGKILL)

            os.pwrite = half
            sys.addaudithook(hook)

        prune_directory(source, work / "whole", "wanda", **OPTIONS)
        expected = contents(work / "whole")
        resumed = set()
        for n in range(1, 500):
            out = work / f"out{n}"
            child = os.fork()
            if child == 0:
                die_at(n)
                prune_directory(source, out, "wanda", **OPTIONS)
                os._exit(0)
            killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
            if out.exists():  # only the folder of work was left behind
                assert contents(out) == expected, n
                shutil.rmtree(out)
            report = prune_directory(source, out, "wanda", **OPTIONS)
            resumed.add(report.resumed_at)
            assert contents(out) == expected, n
            assert not (work / f".out{n}.part").exists(), n
            shutil.rmtree(out)
            if not killed:
                break
        print(n, sorted(resumed, key=str))
    """
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(source), str(tmp_path / "work")],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps, _, resumed = done.stdout.strip().splitlines()[-1].partition(" ")
    assert int(steps) > 40
    assert resumed == "[0, 1, 2, None]"


@pytest.mark.parametrize("share", [0.05, 0.7, 1.0])
def test_full_disk_keeps_what_is_done(source, tmp_path, monkeypatch, share):
    plain, seen, room = os.pwrite, [], [10**6]

    def limited(handle, data, offset):
        seen.append(1)
        if len(seen) > room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", limited)
    expected = tmp_path / "expected"
    prune_directory(source, expected, "wanda", **OPTIONS)
    room[0] = len(seen) + int(share * (len(seen) - 1))
    out = tmp_path / "out"
    with pytest.raises(CheckpointError, match="No space left on device") as caught:
        prune_directory(source, out, "wanda", **OPTIONS)
    assert "of 2 stages are done and kept in" in str(caught.value)
    assert "run the same again to go on" in str(caught.value)
    assert not out.exists()
    monkeypatch.setattr(os, "pwrite", plain)
    prune_directory(source, out, "wanda", **OPTIONS)
    assert contents(out) == contents(expected)


def test_too_little_disk_is_known_before_the_first_block(source, tmp_path, monkeypatch):
    def no_room(handle, offset, size):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", no_room)
    with pytest.raises(CheckpointError, match=r"0 of 2 stages are done.*MiB of disk"):
        prune_directory(source, tmp_path / "out", "magnitude")


def interrupt(source: Path, out: Path, monkeypatch, **options) -> None:
    """Leaves a run that has finished its first block."""

    class Killed(BaseException):
        pass

    def die(self, *rest):
        if self.journal.progress.done == 1:
            raise Killed
        return prune(self, *rest)

    prune = run.StreamedPruning._prune
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(run.StreamedPruning, "_prune", die)
        prune_directory(source, out, "wanda", **{**OPTIONS, **options})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"sparsity": 0.6}, "method.sparsity was 0.5, is 0.6"),
        ({"pattern": "2:4", "sparsity": None}, "method.pattern was row, is 2:4"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"targets": ["*.up_proj"]}, "targets was"),
        ({"calibration": batches_for(MODEL, seed=3)}, "calibration was"),
    ],
)
def test_other_settings_are_not_mixed_with_what_is_done(
    source, tmp_path, monkeypatch, changed, words
):
    out = tmp_path / "out"
    interrupt(source, out, monkeypatch)
    with pytest.raises(CheckpointError, match="a run that was interrupted") as caught:
        prune_directory(source, out, "wanda", **{**OPTIONS, **changed})
    assert words in str(caught.value)
    assert "--restart" in str(caught.value)
    report = prune_directory(source, out, "wanda", **{**OPTIONS, **changed}, resume=False)
    assert report.resumed_at is None
    assert out.is_dir()


def test_a_changed_source_is_noticed(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    interrupt(source, out, monkeypatch)
    shard = sorted(source.glob("*.safetensors"))[0]
    shutil.copyfile(shard, tmp_path / "copy")
    shutil.move(tmp_path / "copy", shard)
    os.utime(shard, (1, 1))
    with pytest.raises(CheckpointError, match=rf"source.{shard.name} was"):
        prune_directory(source, out, "wanda", **OPTIONS)


def test_a_damaged_journal_is_an_error(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    interrupt(source, out, monkeypatch)
    (tmp_path / ".out.part" / "journal.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"journal\.json is damaged.*--restart"):
        prune_directory(source, out, "wanda", **OPTIONS)


def test_going_on_says_where(source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    interrupt(source, out, monkeypatch)
    assert not out.exists()
    report = prune_directory(source, out, "wanda", **OPTIONS)
    assert (report.resumed_at, report.stages) == (1, 2)


def test_two_at_once_are_refused(source, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / ".out.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CheckpointError, match="another process is writing"):
            prune_directory(source, tmp_path / "out", "magnitude")


def test_memory_that_runs_out_keeps_what_is_done(source, tmp_path, monkeypatch):
    def empty(*args, **kwargs):
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory"
        )

    monkeypatch.setattr(run, "prune_stage", empty)
    with pytest.raises(OutOfMemory, match=r"the memory ran out.*0 of 2 stages are done and kept"):
        prune_directory(source, tmp_path / "out", "wanda", **OPTIONS)
