"""Atomic writes: a kill or a full disk leaves the old file whole."""

import signal
import subprocess
import sys
import textwrap

import pytest

from sparsecraft.core.errors import CheckpointError
from sparsecraft.model.files import atomic_directory, write_atomic


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_atomic(path, "one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_folder_that_exists_is_kept_unless_overwritten(tmp_path):
    target = tmp_path / "model"
    with atomic_directory(target) as folder:
        (folder / "w").write_text("old")
    with pytest.raises(CheckpointError, match="--overwrite"), atomic_directory(target):
        pass
    assert (target / "w").read_text() == "old"
    with atomic_directory(target, overwrite=True) as folder:
        (folder / "w").write_text("new")
    assert (target / "w").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_an_error_in_the_middle_leaves_the_old_folder(tmp_path):
    target = tmp_path / "model"
    with atomic_directory(target) as folder:
        (folder / "w").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(target, overwrite=True) as folder:
        (folder / "w").write_text("half")
        raise RuntimeError
    assert (target / "w").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "model").write_text("a file")
    with pytest.raises(CheckpointError, match="is a file"), atomic_directory(tmp_path / "model"):
        pass


def _child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")
    done = _child(
        """
        import resource, signal, sys
        from pathlib import Path
        from sparsecraft.core.errors import CheckpointError
        from sparsecraft.model.files import write_atomic
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_atomic(Path(sys.argv[1]), b"x" * 100_000)
        except CheckpointError as error:
            print(error)
        """,
        path,
    )
    assert "could not write" in done.stdout, done.stderr
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("step", range(1, 5))
def test_a_kill_at_any_step_leaves_old_or_new(tmp_path, step):
    path = tmp_path / "a.bin"
    write_atomic(path, b"old")
    done = _child(
        """
        import os, signal, sys
        from pathlib import Path
        from sparsecraft.model import files
        left = int(sys.argv[2])
        def dying(call):
            def run(*arguments, **options):
                global left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **options)
            return run
        files.tempfile.mkstemp = dying(files.tempfile.mkstemp)
        files.os.fsync = dying(files.os.fsync)
        files.Path.replace = dying(files.Path.replace)
        files.Path.unlink = dying(files.Path.unlink)
        files.write_atomic(Path(sys.argv[1]), b"new")
        """,
        path,
        step,
    )
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == (b"new" if step == 4 else b"old")
