"""What the report says of the machine, the versions and the memory."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import sparsecraft
from sparsecraft.kernels import backends
from sparsecraft.kernels.processor import cpu_name

PACKAGES = ("torch", "numpy", "transformers", "numba", "safetensors", "scikit-learn")


def environment(device: str = "cpu", dtype: str = "float32") -> dict[str, Any]:
    """Returns the facts under which a run was made, as plain values."""
    return {
        "machine": machine(device, dtype),
        "versions": versions(),
        "backends": backends.describe(),
    }


def machine(device: str = "cpu", dtype: str = "float32") -> dict[str, Any]:
    """Returns processor, cores, threads, memory in GiB, platform, device and dtype."""
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(memory_bytes() / 2**30, 1),
        "platform": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
        "dtype": dtype,
    }


def versions() -> dict[str, str]:
    """Returns the versions of Python, sparsecraft and the packages that decide results."""
    found = {"python": platform.python_version(), "sparsecraft": sparsecraft.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def cores() -> int:
    """Returns how many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_bytes() -> int:
    """Returns the memory of the machine, or of the control group that limits it; 0 if unknown."""
    try:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 0
    limit = Path("/sys/fs/cgroup/memory.max")
    try:
        allowed = limit.read_text().strip()
    except OSError:
        return total
    return min(total, int(allowed)) if allowed.isdigit() else total


def peak_memory_bytes() -> int:
    """Returns the most memory that this process has held at once; 0 where it is not known."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def device_name(device: str) -> str:
    """Returns the device with the accelerator's own name, where there is one."""
    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(torch.device(device))})"
    return device
