"""The memory of this process: what it had, and what it may still take."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model import memory
from sparsecraft.model.memory import format_bytes, parse_bytes, peak_bytes, private_bytes, room

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("512", 512), ("2K", 2048), ("1GiB", 2**30), ("1.5 gb", 3 * 2**29), ("3 MiB", 3 * 2**20)],
)
def test_sizes_are_read(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "much", "-1G", "1 X", "1GG"])
def test_what_is_no_size_is_an_error(text):
    with pytest.raises(InvalidValue, match="is not a size in bytes"):
        parse_bytes(text)


def test_sizes_are_written():
    assert [format_bytes(n) for n in (12, 2048, 20 * 2**20, 1.5 * 2**30)] == [
        "12 B", "2.0 KiB", "20 MiB", "1.5 GiB",
    ]  # fmt: skip


@linux
def test_the_peak_only_grows():
    before = peak_bytes()
    held = bytearray(64 * 2**20)
    assert peak_bytes() >= before
    assert private_bytes() > len(held)


@linux
def test_the_smallest_limit_counts():
    mine = room(2**20)
    assert mine.limit == "max_memory"
    assert mine.bytes < 2**20
    assert room().bytes > 0


@linux
def test_a_limit_of_the_process_is_seen():
    script = """
        import resource
        from sparsecraft.model.memory import room
        resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))
        found = room()
        print(found.limit, 0 < found.bytes < 2**30)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["RLIMIT_DATA", "of", "this", "process", "True"]


def test_nothing_is_known_without_proc(monkeypatch, tmp_path):
    for name in ("_STATUS", "_MEMORY", "_GROUP"):
        monkeypatch.setattr(memory, name, tmp_path / "none")
    assert room() is None
    assert private_bytes() is None
