"""The facts under which a measurement is worth reusing: machine, threads, versions, kernels."""

from __future__ import annotations

from typing import Any

import torch

import sparsecraft
from sparsecraft.kernels.backends import numba_version
from sparsecraft.kernels.linear import native_status
from sparsecraft.kernels.processor import cpu_name


def fingerprint(device: torch.device | str = "cpu") -> dict[str, Any]:
    """Returns processor or GPU, threads, versions, and what native products run on.

    Two measurements whose fingerprints are equal were made under the same conditions, as far as
    can be known from inside.
    """
    status = native_status()
    kind = torch.device(device)
    native = f"{status['isa']} {' '.join(status['features'])}".strip()  # type: ignore[arg-type]
    return {
        "processor": cpu_name(),
        "device": torch.cuda.get_device_name(kind) if kind.type == "cuda" else str(kind.type),
        "threads": torch.get_num_threads(),
        "sparsecraft": sparsecraft.__version__,
        "torch": str(torch.__version__),
        "numba": numba_version(),
        "native": native if status["available"] else f"none: {status['reason']}",
    }
