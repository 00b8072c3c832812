"""What is known of the processor: its name, and how much its last cache holds."""

from __future__ import annotations

import functools
import platform
import subprocess
import sys
from pathlib import Path

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_ASSUMED = 32 * 2**20
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


@functools.cache
def cpu_name() -> str:
    """Returns the processor's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return _sysctl("machdep.cpu.brand_string") or platform.processor() or platform.machine()


@functools.cache
def cache_bytes() -> int:
    """Returns the size of the last-level cache; 32 MiB where the system does not say."""
    sizes = [_bytes(path.read_text().strip()) for path in _CACHES.glob("index*/size")]
    told = _sysctl("hw.l3cachesize") or _sysctl("hw.l2cachesize")
    sizes += [int(told)] if told.isdigit() else []
    return max(sizes, default=0) or _ASSUMED


def _bytes(text: str) -> int:
    unit = _UNITS.get(text[-1:], 1)
    digits = text.rstrip("KMG")
    return int(digits) * unit if digits.isdigit() else 0


def _sysctl(name: str) -> str:
    if sys.platform != "darwin":
        return ""
    found = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else ""
