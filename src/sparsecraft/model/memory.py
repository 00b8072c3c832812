"""How much memory this process has taken and may still take.

On Linux the figures come from /proc, the limits of the process and of its control group; elsewhere
only the peak is known, and a run is not refused for want of memory before it starts.
"""

from __future__ import annotations

import ctypes
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from sparsecraft.core.errors import InvalidValue

_STATUS = Path("/proc/self/status")
_MEMORY = Path("/proc/meminfo")
_GROUP = Path("/sys/fs/cgroup")
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Room:
    """Memory that may still be taken.

    Args:
        bytes: How much.
        limit: What sets the limit, in words.
    """

    bytes: int
    limit: str


def room(most: int | None = None) -> Room | None:
    """Returns the memory that may still be taken, or None where that is not known.

    Args:
        most: Bytes of private memory that the process may have by the user's own wish.
    """
    status = _numbers(_STATUS)
    found: list[Room] = []
    if most is not None:
        found.append(Room(most - status.get("RssAnon", 0), "max_memory"))
    found += _process_limits(status)
    available = _numbers(_MEMORY).get("MemAvailable")
    if available is not None:
        found.append(Room(available, "memory available on this machine"))
    group = _group_room()
    if group is not None:
        found.append(Room(group, "memory limit of the control group"))
    return min(found, key=lambda each: each.bytes) if found else None


def peak_bytes() -> int | None:
    """Returns the most physical memory this process ever had, or None where that is not known."""
    status = _numbers(_STATUS)
    if "VmHWM" in status:
        return status["VmHWM"]
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def private_bytes() -> int | None:
    """Returns the private memory that this process has mapped, which RLIMIT_DATA limits."""
    return _numbers(_STATUS).get("VmData")


def return_freed_memory() -> bool:
    """Makes the C library hand every large block back when it is freed; returns whether it can.

    Left alone, glibc keeps freed blocks of up to 32 MiB for later, and they stay private memory of
    the process. It is a setting of the whole process, for a program of its own to make.
    """
    if sys.platform != "linux":
        return False
    call = getattr(ctypes.CDLL(None), "mallopt", None)
    return call is not None and call(_MMAP_THRESHOLD, 2**20) == 1


def parse_bytes(text: str) -> int:
    """Returns the bytes that a text such as "1.5 GiB", "800MB" or "2G" names, in powers of two.

    Raises:
        InvalidValue: If it is no size.

    Example:
        >>> parse_bytes("1.5 GiB")
        1610612736
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if not found:
        raise InvalidValue(f"{text!r} is not a size in bytes: write 800MiB, 1.5GiB or 2G")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def format_bytes(count: float) -> str:
    """Returns bytes for a reader.

    Example:
        >>> format_bytes(3 * 2**29)
        '1.5 GiB'
    """
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if abs(count) >= unit:
            return f"{count / unit:.{1 if count < 10 * unit else 0}f} {name}"
    return f"{count:.0f} B"


def _process_limits(status: dict[str, int]) -> list[Room]:
    try:
        import resource
    except ImportError:  # Windows
        return []
    found = []
    for name, used in (("RLIMIT_DATA", "VmData"), ("RLIMIT_AS", "VmSize")):
        soft, _ = resource.getrlimit(getattr(resource, name))
        if soft != resource.RLIM_INFINITY and used in status:
            found.append(Room(soft - status[used], f"{name} of this process"))
    return found


def _group_room() -> int | None:
    """Returns what the control group may still take; the page cache can be given back."""
    try:
        limit = (_GROUP / "memory.max").read_text().strip()
        used = int((_GROUP / "memory.current").read_text())
        cache = re.search(r"^inactive_file (\d+)", (_GROUP / "memory.stat").read_text(), re.M)
    except (OSError, ValueError):
        return None
    return None if limit == "max" else int(limit) - used + (int(cache[1]) if cache else 0)


def _numbers(path: Path) -> dict[str, int]:
    """Returns the lines of a file such as /proc/meminfo in bytes."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    found = (re.fullmatch(r"(\w+):\s+(\d+) kB", line) for line in lines)
    return {each[1]: int(each[2]) * 1024 for each in found if each}
