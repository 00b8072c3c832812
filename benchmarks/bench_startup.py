"""What `import sparsecraft` adds to importing torch, and how long `sparsecraft --help` takes.

Both start a new process each round; the contenders take turns, and the median counts.
Limits: 0.3 s each, and `--help` without torch.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 7
CONTENDERS = {
    "python": "pass",
    "import torch": "import torch",
    "import torch, sparsecraft": "import torch, sparsecraft",
    "import sparsecraft, its methods": "import torch, sparsecraft; sparsecraft.methods.names()",
    "sparsecraft --help": "from sparsecraft.cli.main import main; main(['--help'])",
    "sparsecraft prune --help": "from sparsecraft.cli.main import main; main(['prune', '--help'])",
}


def seconds(code: str) -> float:
    """Returns the wall time of one process."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    """Prints the medians and the two differences that have limits."""
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for code in CONTENDERS.values():
        seconds(code)
    for _ in range(ROUNDS):
        for name, code in CONTENDERS.items():
            times[name].append(seconds(code))
    medians = {name: statistics.median(found) for name, found in times.items()}
    for name, median in medians.items():
        print(f"{name:<34}{median:7.3f} s   (fastest {min(times[name]):.3f})")
    added = medians["import torch, sparsecraft"] - medians["import torch"]
    print(f"import sparsecraft beyond torch:  {added:.3f} s (limit 0.3)")
    print(f"sparsecraft --help:               {medians['sparsecraft --help']:.3f} s (limit 0.3)")


if __name__ == "__main__":
    main()
