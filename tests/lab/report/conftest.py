"""A comparison with invented numbers, for tests of the report only."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

DENSE_SCORE = 0.6472
DENSE_BYTES = 90_868_376
PARAMETERS = 22_713_216
TARGETED = 10_616_832
SEEDS = (0, 1, 2, 3, 4)

# Where the score has lost half, and how sharply it falls there.
CURVES = {
    "random": (0.26, 7.0),
    "magnitude": (0.72, 13.0),
    "global_magnitude": (0.76, 14.0),
    "wanda": (0.78, 14.0),
    "sparsegpt": (0.84, 16.0),
}


@pytest.fixture
def record() -> dict[str, Any]:
    """A fresh comparison, to be changed at will."""
    return comparison()


def comparison() -> dict[str, Any]:
    """Returns 25 arms on an invented sentence encoder."""
    rng = np.random.default_rng(0)
    arms = [
        _arm(rng, "dense", "Dense", "dense", 0.0, control=True),
        _arm(rng, "dense-int8", "Dense int8", "dense int8", 0.0, control=True),
    ]
    grid = {
        "random": (0.3, 0.5, 0.7, 0.9),
        "magnitude": (0.3, 0.5, 0.7, 0.9),
        "global_magnitude": (0.5, 0.7, 0.9),
        "wanda": (0.3, 0.5, 0.7, 0.9),
        "sparsegpt": (0.5, 0.7, 0.9),
    }
    for method, sparsities in grid.items():
        for sparsity in sparsities:
            name = f"{method.replace('_', ' ').capitalize()} {sparsity:.0%}"
            arm = _arm(rng, f"{method}-{sparsity}", name, method, sparsity)
            arms.append(arm | {"control": method == "random"})
    for method in ("wanda", "sparsegpt"):
        arms.append(
            _arm(rng, f"{method}-2:4", f"{method.capitalize()} 2:4", method, 0.5, pattern="2:4")
        )
    arms += [
        _compact(rng, "compact-4", "Compact, 4 of 6 blocks, distilled", 0.156, 0.017, 1.49, False),
        _compact(rng, "compact-3", "Compact, 3 of 6 blocks, distilled", 0.234, 0.041, 1.97, False),
        _compact(rng, "compact-4-int8", "Compact, 4 blocks, int8", 0.156, 0.0195, 2.21, True),
    ]
    return {
        "version": 1,
        "title": "Which sparsity pays for a small sentence encoder?",
        "command": "sparsecraft compare --task stdlib-docs --model minilm --methods random"
        " magnitude global_magnitude wanda sparsegpt --sparsity 0.3 0.5 0.7 0.9 --seeds 5"
        " --max-drop 0.02",
        "created": "2026-03-02 14:05",
        "directory": "runs/minilm",
        "task": {
            "name": "stdlib-docs",
            "description": "Finds the documentation of a function from a question about it.",
            "metric": "nDCG@10",
            "higher_is_better": True,
            "kind": "retrieval",
            "examples": {"validation": 612, "test": 613},
        },
        "model": {
            "name": "MiniLM-L6",
            "parameters": PARAMETERS,
            "targeted": TARGETED,
            "bytes": DENSE_BYTES,
        },
        "targets": _targets(),
        "machine": {
            "cpu": "Example CPU 2.0 GHz",
            "cores": 2,
            "threads": 2,
            "memory_gib": 16,
            "platform": "Linux x86_64",
            "device": "cpu",
            "dtype": "float32",
        },
        "versions": {"sparsecraft": "0.1.0", "torch": "2.13.0", "numpy": "2.3.1"},
        "backends": {"sparse product": "numba", "int8": "x86", "selection": "reference"},
        "arms": arms,
        "knees": _knees(),
        "choice": {
            "max_drop": 0.02,
            "prefer": "latency",
            "winner": "compact-4-int8",
            "met": True,
            "lines": [
                "Of the arms that lose at most 2 % on the validation half, it is the fastest.",
                "6 of 24 arms stay within 2 % on the validation half.",
            ],
            "saved_to": "runs/minilm/best",
        },
        "problems": ["Wanda 90 %: 1 of 36 layers kept more than asked (75 rows have no input)."],
        "notes": ["Batches hold sentences of 32 tokens.", "One process, nothing else was running."],
        "seconds": 1322.4,
    }


def _score(method: str, sparsity: float) -> float:
    if method not in CURVES:
        return DENSE_SCORE
    half, sharp = CURVES[method]
    level = 1 / (1 + math.exp(sharp * (sparsity - half)))
    start = 1 / (1 + math.exp(-sharp * half))
    return DENSE_SCORE * level / start


def _arm(
    rng: np.random.Generator,
    name: str,
    label: str,
    method: str,
    sparsity: float,
    *,
    pattern: str | None = None,
    control: bool = False,
) -> dict[str, Any]:
    int8 = method == "dense int8"
    score = _score(method, sparsity + (0.09 if pattern else 0.0)) * (0.997 if int8 else 1.0)
    test = [score * (1 + 0.004 * rng.standard_normal())]
    if method == "dense":
        test = [DENSE_SCORE]
    if method == "random":
        test = [score * (1 + 0.05 * rng.standard_normal()) for _ in SEEDS]
    bits = DENSE_BYTES - TARGETED * 4 * sparsity + TARGETED / 8
    return _record(
        rng,
        id=name,
        label=label,
        method=method,
        pattern=pattern,
        control=control,
        tests=test,
        asked=sparsity if sparsity else None,
        sparsity=sparsity if method != "dense int8" else 0.0,
        sparsity_all=sparsity * TARGETED / PARAMETERS,
        plain=58_300_000 if int8 else DENSE_BYTES,
        packed=None if int8 or not sparsity else round(bits),
        form="int8 state" if int8 else "packed bitmask" if sparsity else "plain float32",
        speed={"dense": 1.0, "dense int8": 1.31}.get(method, 1 + 0.006 * rng.standard_normal()),
        flops=1 - sparsity * 0.93,
        layers=_layers(rng, method, sparsity) if sparsity else [],
    )


def _compact(
    rng: np.random.Generator,
    name: str,
    label: str,
    gone: float,
    loss: float,
    speed: float,
    int8: bool,
) -> dict[str, Any]:
    held = DENSE_BYTES * (1 - gone)
    return _record(
        rng,
        id=name,
        label=label,
        method="compact int8" if int8 else "compact",
        pattern=None,
        control=False,
        tests=[DENSE_SCORE * (1 - loss) * (1 + 0.003 * rng.standard_normal()) for _ in SEEDS[:3]],
        asked=None,
        sparsity=None,
        sparsity_all=gone,
        plain=round(held * 0.45) if int8 else round(held),
        packed=None,
        form="int8 state" if int8 else "plain float32",
        speed=speed,
        flops=1 - 2 * gone,
        layers=[],
    ) | {"note": "Blocks removed, then distilled from dense for 2 epochs."}


def _record(rng: np.random.Generator, **given: Any) -> dict[str, Any]:
    tests, dense = given["tests"], given["method"] == "dense"
    mean = float(np.mean(tests))
    drop = 1 - mean / DENSE_SCORE
    half = 0.004 + 0.06 * min(abs(drop), 0.3) + (0.004 if len(tests) > 1 else 0)
    latency = {}
    for batch, base in (("1", 7.9), ("32", 148.0)):
        ratio = 1.0 if dense else given["speed"] * (1 + 0.01 * rng.standard_normal())
        took = base / ratio
        latency[batch] = {
            "ms": took,
            "ms_low": took * 0.985,
            "ms_high": took * 1.02,
            "dense_ms": base,
            "ratio": ratio,
        }
    seeds = SEEDS[: len(tests)]
    way = "paired t over seeds" if len(tests) > 1 else "paired bootstrap over test examples"
    return {
        "id": given["id"],
        "label": given["label"],
        "method": given["method"],
        "pattern": given["pattern"],
        "control": given["control"],
        "asked": given["asked"],
        "sparsity": given["sparsity"],
        "sparsity_all": given["sparsity_all"],
        "deterministic": len(tests) == 1,
        "runs": [
            {
                "seed": seed,
                "validation": test * 1.004,
                "test": test,
                "extra": {"cosine": 1 - max(drop, 0.0) ** 1.5},
                "seconds": {"prune": 1.9, "evaluate": 6.2},
            }
            for seed, test in zip(seeds, tests, strict=True)
        ],
        "validation": mean * 1.004,
        "test": mean,
        "sd": float(np.std(tests, ddof=1)) if len(tests) > 1 else None,
        "drop": None
        if dense
        else {
            "estimate": drop,
            "low": drop - half,
            "high": drop + half,
            "method": way,
            "n": len(tests) if len(tests) > 1 else 613,
        },
        "bytes": {"plain": given["plain"], "packed": given["packed"]},
        "bytes_form": given["form"],
        "flops": {"dense": 1.36e9, "effective": 1.36e9 * given["flops"]},
        "latency": latency,
        "throughput": {
            "1": 1000 / latency["1"]["ms"],
            "32": 32_000 / latency["32"]["ms"],
        },
        "layers": given["layers"],
        "note": None,
    }


def _shapes() -> dict[str, tuple[int, int]]:
    parts = {
        "attention.self.query": (384, 384),
        "attention.self.key": (384, 384),
        "attention.self.value": (384, 384),
        "attention.output.dense": (384, 384),
        "intermediate.dense": (1536, 384),
        "output.dense": (384, 1536),
    }
    return {
        f"encoder.layer.{block}.{name}.weight": shape
        for block in range(6)
        for name, shape in parts.items()
    }


def _layers(rng: np.random.Generator, method: str, sparsity: float) -> list[dict[str, Any]]:
    layers = []
    for index, (name, shape) in enumerate(_shapes().items()):
        asked = 1 - sparsity
        if method == "global_magnitude":
            asked = float(np.clip(asked * (1 + 0.35 * rng.standard_normal()), 0.02, 0.98))
        stuck = method == "wanda" and sparsity == 0.9 and index == 35
        layers.append(
            {
                "name": name,
                "shape": list(shape),
                "asked": asked,
                "achieved": 0.137 if stuck else asked,
            }
        )
    return layers


def _targets() -> list[dict[str, Any]]:
    targets: list[dict[str, Any]] = [
        {"name": name, "shape": list(shape), "numel": shape[0] * shape[1], "targeted": True}
        for name, shape in _shapes().items()
    ]
    for name, rows in (("word", 30522), ("position", 512), ("token_type", 2)):
        targets.append(
            {
                "name": f"embeddings.{name}_embeddings.weight",
                "shape": [rows, 384],
                "numel": rows * 384,
                "targeted": False,
                "reason": "embedding: rows are looked up, not multiplied",
            }
        )
    for block in range(6):
        for part in ("attention.output.LayerNorm", "output.LayerNorm"):
            for kind in ("weight", "bias"):
                targets.append(
                    {
                        "name": f"encoder.layer.{block}.{part}.{kind}",
                        "shape": [384],
                        "numel": 384,
                        "targeted": False,
                        "reason": "one dimension: norms and biases stay dense",
                    }
                )
    targets.append(
        {
            "name": "pooler.dense.weight",
            "shape": [384, 384],
            "numel": 384 * 384,
            "targeted": False,
            "reason": "not used by the task: its output is never read",
        }
    )
    return targets


def _knees() -> list[dict[str, Any]]:
    rows = (
        ("random", 0.02, 0.01, 0.04, False, 0.9, 0.7, 0.8),
        ("magnitude", 0.41, 0.37, 0.46, True, 0.12, 1.9, 15.8),
        ("global_magnitude", 0.47, 0.42, 0.5, True, 0.1, 2.0, 20.0),
        ("wanda", 0.5, 0.46, 0.54, True, 0.08, 2.1, 26.3),
        ("sparsegpt", 0.61, 0.55, 0.64, True, 0.06, 2.4, 40.0),
    )
    return [
        {
            "method": method,
            "pattern": "unstructured",
            "knee": knee,
            "low": low,
            "high": high,
            "has_knee": bend,
            "slope_before": before,
            "slope_after": after,
            "ratio": ratio,
            "text": f"{'a knee' if bend else 'no knee'}: within 0.01 of the dense score up to "
            f"sparsity {knee:.2f}",
        }
        for method, knee, low, high, bend, before, after, ratio in rows
    ]
