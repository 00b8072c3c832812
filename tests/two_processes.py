"""Two processes that run one test file's `work(rank, folder)`, as two ranks of a training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def found_by_ranks(file: str, folder: Path) -> list[Any]:
    """Returns what each rank wrote to `rank0.pt` and `rank1.pt` in the folder.

    Args:
        file: The test file, whose `work` is called.
        folder: Where the processes meet and write.
    """
    load = (
        "import sys; import importlib.util as u; "
        f"spec = u.spec_from_file_location('battery', {file!r}); "
        "battery = u.module_from_spec(spec); sys.modules['battery'] = battery; "
        "spec.loader.exec_module(battery); battery.work(int(sys.argv[1]), sys.argv[2])"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", load, str(rank), str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    logs = [process.communicate(timeout=600)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], logs
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
