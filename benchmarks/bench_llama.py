"""Quality and speed of one model: perplexity, tokens a second, bytes, dense and sparse.

The model is the Llama that the task `stdlib-llama` trains on Python source. Three steps: every
method tries its settings on validation windows and the best model is kept; each arm is stored and
packed, and its loss on test windows is that of its decoding, paired with dense window by window;
all arms decode in turns. What is finished lies in --work and is not done again, so a run that was
stopped goes on. The table says which sparse arms dense int8 dominates: at least as fast, as good
and as small. The whole takes about 40 minutes on two idle cores once the model is trained.

Run: python benchmarks/bench_llama.py [--quick] [--work DIR] [--threads 2] [--only ARM ...]
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import sparsecraft
from llama_arms import SETTINGS, Arm, apply, every_arm, quick_arms, save_made
from llama_table import answer, table
from sparsecraft.lab.decoding import Decoding, decode_in_turns
from sparsecraft.lab.evidence import paired
from sparsecraft.lab.evidence.paired import Interval, paired_bootstrap
from sparsecraft.lab.machine import machine, versions
from sparsecraft.lab.measures.perplexity import score_windows
from sparsecraft.lab.rounds import verdict
from sparsecraft.lab.speed_forms import as_decoded, is_sparse, twin
from sparsecraft.lab.tasks import load_task
from sparsecraft.model.checkpoints import load
from sparsecraft.model.runtime import DecisionRecord
from sparsecraft.model.runtime.packed_linear import PackedLinear

REFERENCE, RIVAL = "torch float32", "dense int8"
CALIBRATION = {"weights": 32768, "gate": 4096, "greedy": 1024}
"""Tokens; the greedy allocation runs every block hundreds of times on them."""


class Bench:
    """The task, the dense model and the folder of what is finished.

    Args:
        options: The command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.task: Any = load_task(options.task)
        self.work = options.work / self.task.fingerprint
        self.work.mkdir(parents=True, exist_ok=True)
        self.dense = self.task.load_model()
        self._losses: np.ndarray | None = None

    def windows(self, split: str, count: int) -> torch.Tensor:
        """Returns windows at even distances."""
        found = self.task.windows[split]
        return found[torch.linspace(0, len(found) - 1, min(count, len(found))).long()]

    @property
    def test(self) -> torch.Tensor:
        """The windows that are reported on."""
        return self.windows("test", self.options.windows)

    @property
    def dense_losses(self) -> np.ndarray:
        """Loss of the dense float32 model on each test window."""
        if self._losses is None:
            self._losses = score_windows(self.dense, self.test).losses
        return self._losses

    def model_of(self, arm: Arm) -> nn.Module:
        """Returns the arm's model before it is stored; made and kept where it is not there."""
        dtype = getattr(torch, arm.load)
        if not arm.method:
            return self.task.load_model().to(dtype)
        folder = self.work / "models" / arm.made
        if not (folder / "choice.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)
            self._make(arm, folder)
        return load(folder / "model", dtype=dtype)

    def choice_of(self, arm: Arm) -> dict[str, Any]:
        """Returns the settings that validation chose."""
        path = self.work / "models" / arm.made / "choice.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def _settings(self, arm: Arm) -> list[Mapping[str, Any]]:
        """Returns what is tried; a quick run leaves the greedy allocations out."""
        every = SETTINGS[arm.method]
        return [s for s in every if not (self.options.quick and "allocation" in s)]

    def _make(self, arm: Arm, folder: Path) -> None:
        windows = self.windows("validation", self.options.choice_windows)
        best: tuple[float, Any, Any] = (math.inf, None, None)
        tried = {}
        for settings in self._settings(arm):
            greedy = settings.get("allocation") == "greedy"
            tokens = CALIBRATION["greedy" if greedy else arm.kind]
            calibration = self.task.calibration(tokens, seed=0)
            model = self.task.load_model()
            made = apply(arm, model, settings, calibration)
            loss = float(score_windows(as_decoded(model, model), windows).losses.mean())
            tried[json.dumps(settings)] = math.exp(loss)
            print(
                f"  {arm.made} {settings}: validation perplexity {math.exp(loss):.4f}", flush=True
            )
            if best[1] is None or loss < best[0]:
                best = (loss, made, settings)
        save_made(arm, best[1], folder / "model")
        choice = {"settings": best[2], "validation": tried}
        write(folder / "choice.json", choice)


def quality_of(bench: Bench, arm: Arm) -> dict[str, Any]:
    """Returns what is known of an arm beside its speed, measured once and kept."""
    path = bench.work / f"{arm.slug}.json"
    wanted = {"windows": bench.options.windows, "threads": bench.options.threads}
    if path.is_file():
        kept = json.loads(path.read_text())
        if kept["asked"] == wanted:
            return kept
    model = bench.model_of(arm)
    form, record = model, None
    if arm.packed:
        packed = sparsecraft.pack(
            twin(model),
            example=example(bench),
            keep_original=False,
            seconds=bench.options.seconds,
            **arm.pack_settings,
        )
        form, record = packed.model, packed.record
    scored = score_windows(as_decoded(model, form), bench.test, dense=bench.dense)
    zeros = score_windows(as_decoded(model, model), bench.test) if arm.kind == "gate" else scored
    found = {
        "asked": wanted,
        "all_zeros_used": zeros.perplexity,
        "choice": bench.choice_of(arm),
        "losses": scored.losses.tolist(),
        "kl": scored.kl,
        "megabytes": weights_of(form) / 1e6,
        "computes": computes(record),
        "record": None if record is None else record.to_json(),
    }
    write(path, found)
    print(f"  {arm.name}: perplexity {scored.perplexity:.4f}, {found['computes']}", flush=True)
    return found


def example(bench: Bench) -> dict[str, torch.Tensor]:
    """Returns the training text that packing judges errors and gates by."""
    return {"input_ids": bench.task.windows["training"][:1]}


def weights_of(model: nn.Module) -> int:
    """Returns the bytes that all linear layers hold."""
    stored = [store for m in model.modules() if isinstance(m, PackedLinear) for store in m.stores()]
    plain = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    return sum(each.nbytes for each in (*stored, *plain))


def computes(record: Any) -> str:
    """Returns what the layers compute with, counted."""
    if record is None:
        return "as it is"
    kinds: dict[str, int] = {}
    for choice in record.choices:
        kinds[choice.chosen] = kinds.get(choice.chosen, 0) + 1
    hooked = sum("hooks" in reason for reason in record.left_alone.values())
    if hooked:
        kinds["masked, simulated"] = hooked
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


def decoded(bench: Bench, arms: list[Arm], known: Mapping[str, Any]) -> dict[str, Decoding]:
    """Returns how fast every arm decodes, all in turns."""
    forms: dict[str, nn.Module] = {}
    for arm in arms:
        form = bench.model_of(arm)
        if arm.packed:
            record = DecisionRecord.from_json(known[arm.name]["record"])
            form = sparsecraft.pack(
                form, example=example(bench), keep_original=False, record=record,
                **arm.pack_settings,
            ).model  # fmt: skip
        forms[arm.name] = form
    prompt = bench.test[:1, : bench.options.context]
    return decode_in_turns(forms, prompt, bench.options.tokens, rounds=bench.options.rounds)


def rows_of(bench: Bench, arms: list[Arm], known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the lines of the table."""
    speeds = decoded(bench, arms, known)
    rows = []
    for arm in arms:
        facts, rate = known[arm.name], speeds[arm.name].rate
        change = compared(facts["losses"], bench.dense_losses)
        best = speeds.get(f"dense {arm.store}")
        rows.append({
            "arm": arm.name, "kind": arm.kind, "setting": facts["choice"].get("settings"),
            "perplexity": math.exp(np.mean(facts["losses"])), "kl": facts["kl"],
            "all_zeros_used": facts["all_zeros_used"],
            "change": [change.estimate, change.low, change.high],
            "tokens_per_second": rate.to_json(), "megabytes": facts["megabytes"],
            "over_torch_float32": rate.over(speeds[REFERENCE].rate).median,
            "over_best_dense": None if best is None else rate.over(best.rate).median,
            "computes": facts["computes"],
            "sparse": any(is_sparse(each["chosen"]) for each in choices(facts)),
            "beyond_int8": beyond(arm, known, speeds) if arm.kind != "dense" else None,
        })  # fmt: skip
    return rows


def choices(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the layers' choices of an arm."""
    return [] if facts["record"] is None else facts["record"]["choices"]


def compared(losses: Any, others: Any) -> Interval:
    """Returns the relative change of the perplexity, paired by window."""
    return paired_bootstrap(
        losses, others, statistic=paired.perplexity, combine=lambda a, b: a / b - 1
    )


def beyond(arm: Arm, known: Mapping[str, Any], speeds: Mapping[str, Decoding]) -> list[str]:
    """Returns in what an arm is better than dense int8; in nothing: it is dominated."""
    mine, rival = known[arm.name], known[RIVAL]
    found = []
    if verdict(speeds[arm.name].rate.over(speeds[RIVAL].rate)) == "faster":
        found.append("faster")
    if compared(mine["losses"], rival["losses"]).high < 0:
        found.append("lower perplexity")
    if mine["megabytes"] < 0.99 * rival["megabytes"]:
        found.append("smaller")
    return found


def write(path: Path, values: Any) -> None:
    """Writes JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(values, indent=1, default=str) + "\n")
    part.replace(path)


def main() -> None:
    """Makes, judges and times all arms, and writes the table beside their figures."""
    options = parsed()
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    arms = chosen_arms(options)
    known = {arm.name: quality_of(bench, arm) for arm in arms}
    rows = rows_of(bench, arms, known)
    facts = {"machine": machine(), "versions": versions(), "task": bench.task.description}
    said = answer(rows)
    write(bench.work / "bench_llama.json", {**facts, "rows": rows, "answer": said})
    text = f"{table(rows)}\n\n{said}\n\n{bench.task.description}\n"
    (bench.work / "bench_llama.md").write_text(text)
    print(f"{text}\nwritten to {bench.work}")
    met = any(row["sparse"] and row["beyond_int8"] for row in rows)
    print(f"asked: a sparse arm that dense int8 does not dominate: {'met' if met else 'NOT met'}")


def chosen_arms(options: argparse.Namespace) -> list[Arm]:
    """Returns the arms asked for; the reference and dense int8 always take part."""
    every = quick_arms() if options.quick else every_arm()
    if not options.only:
        return every
    wanted = {REFERENCE, RIVAL, *options.only}
    unknown = wanted - {arm.name for arm in every}
    if unknown:
        raise SystemExit(f"no arm {sorted(unknown)}; there are {[arm.name for arm in every]}")
    return [arm for arm in every if arm.name in wanted]


def parsed() -> argparse.Namespace:
    """Returns the options; --quick shrinks whatever was not given."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--quick", action="store_true", help="few arms of the 260K-parameter model")
    made.add_argument("--work", type=Path, default=Path("bench_llama"))
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--only", nargs="+", metavar="ARM", help="these arms, by their names")
    full = {"task": "stdlib-llama", "windows": 128, "choice_windows": 32, "tokens": 64,
            "context": 128, "rounds": 7, "seconds": 15}  # fmt: skip
    quick = {"task": "stories260k", "windows": 8, "choice_windows": 4, "tokens": 8, "context": 16,
             "rounds": 3, "seconds": 2}  # fmt: skip
    for name, value in full.items():
        made.add_argument(f"--{name.replace('_', '-')}", type=type(value))
    options = made.parse_args()
    for name, value in (quick if options.quick else full).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


if __name__ == "__main__":
    main()
