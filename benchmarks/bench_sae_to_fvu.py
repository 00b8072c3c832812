"""Seconds from a model to a dictionary that leaves a fixed share of variance, beside SAELens.

Both read the activations of all-MiniLM-L6-v2, layer 3, on the documentation in the standard
library; the clock runs while texts are turned to tokens, activations harvested and steps taken, not
while the share of variance left (FVU) is measured on held-out rows. Ours harvests with
`ActivationStore` and trains with the defaults of `SAETraining`. SAELens' own store reads causal
models only, so its arm gets the plainest loop there is: the model cut off after the layer, texts
of like length together, all rows in memory and shuffled; its trainer runs with its defaults, inputs
scaled. Arms run in turn, each in a fresh process of its own interpreter.

Run: python benchmarks/bench_sae_to_fvu.py --peers /path/to/peers/bin/python [--quick]
Needs SPARSECRAFT_DATA.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

LAYER = 3
CONTEXT = 128
HELD_OUT = 0.05
BOUND = 2.0
MET = 0.9
RATE = 3e-4  # the default of SAELens


def fvu(x: Tensor, reconstruct: Callable[[Tensor], Tensor]) -> float:
    """Returns the squared error over that of the mean, both summed over all rows."""
    with torch.no_grad():
        wrong = sum(float((p - reconstruct(p)).double().square().sum()) for p in x.split(4096))
    return wrong / float((x - x.mean(0)).double().square().sum())


def until(
    target: float, limit: int, every: int, step: Callable[[], None], left: Callable[[], float]
) -> tuple[float, int, float]:
    """Returns seconds of steps, their number, and the FVU at the end."""
    spent, share, taken = 0.0, math.inf, 0
    while share > target and taken < limit:
        start = time.perf_counter()
        for _ in range(every):
            step()
        spent += time.perf_counter() - start
        taken += every
        share = left()
        print(f"  step {taken}: {spent:.1f} s, FVU {share:.4f}", file=sys.stderr)
    return spent, taken, share


def ours(told: dict[str, object], texts: list[str], precision: str = "float32") -> dict:
    """Returns what the arm of sparsecraft took."""
    from transformers import AutoModel, AutoTokenizer

    from sparsecraft.methods.codes.topk import TopK
    from sparsecraft.model.activation_store import ActivationStore
    from sparsecraft.model.sae import SAETraining, SparseAutoencoder
    from sparsecraft.model.sae.trainer import Trainer

    model = AutoModel.from_pretrained(told["model"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(told["model"])
    start = time.perf_counter()
    store = ActivationStore(
        model,
        at=f"encoder.layer.{LAYER}.output",
        texts=texts,
        tokenizer=tokenizer,
        context=CONTEXT,
        rows=told["rows"],
    )
    training, held_out = store.split(HELD_OUT)
    sae = SparseAutoencoder(store.d_in, store.d_in * told["times"], TopK(k=told["k"]))
    settings = SAETraining(steps=told["limit"], batch=told["batch"], precision=precision)
    trainer = Trainer(sae, settings)
    trainer.begin(training)
    reader = iter(training.reader(told["batch"]))
    harvest = time.perf_counter() - start
    x = held_out.rows(torch.arange(len(held_out))).x * trainer.scaling.inputs

    def left() -> float:
        sae.eval()
        return fvu(x, sae)

    spent, taken, share = until(
        told["fvu"], told["limit"], told["every"], lambda: trainer.step(next(reader)), left
    )
    return {"harvest": harvest, "training": spent, "steps": taken, "fvu": share}


def ours_bfloat16(told: dict[str, object], texts: list[str]) -> dict:
    """The same with a bfloat16 encoder."""
    return ours(told, texts, "bfloat16")


def saelens(told: dict[str, object], texts: list[str]) -> dict:
    """Returns what SAELens' trainer took, with activations from a plain loop."""
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(told["model"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(told["model"])
    start = time.perf_counter()
    rows = _harvested(model, tokenizer, texts, told["rows"])
    cut = round(len(rows) * (1 - HELD_OUT))
    training, held_out = rows[:cut], rows[cut:]
    d, batch = rows.shape[1], told["batch"]
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=d,
            d_sae=d * told["times"],
            k=told["k"],
            normalize_activations="expected_average_only_in",
        )
    )
    settings = SAETrainerConfig(
        total_training_samples=told["limit"] * batch,
        train_batch_size_samples=batch,
        lr=RATE,
        lr_end=RATE / 10,
    )
    trainer = SAETrainer(settings, sae, iter(()))
    scale = float(math.sqrt(d) / training.norm(dim=1).mean())
    trainer.activation_scaler.scaling_factor = scale
    batches = _shuffled(training, batch)
    harvest = time.perf_counter() - start

    def step() -> None:
        trainer.step(next(batches))
        trainer.n_training_steps += 1

    def left() -> float:
        return fvu(held_out * scale, sae)

    spent, taken, share = until(told["fvu"], told["limit"], told["every"], step, left)
    return {"harvest": harvest, "training": spent, "steps": taken, "fvu": share}


@torch.no_grad()
def _harvested(model: torch.nn.Module, tokenizer, texts: list[str], count: int) -> Tensor:
    """Returns the outputs of the layer, special tokens left out."""
    model.encoder.layer = model.encoder.layer[: LAYER + 1]
    parts, found = [], 0
    for first in range(0, len(texts), 32 * 64):
        some = tokenizer(texts[first : first + 32 * 64], truncation=True, max_length=CONTEXT)
        order = sorted(range(len(some["input_ids"])), key=lambda i: len(some["input_ids"][i]))
        for start in range(0, len(order), 32):
            chosen = [{"input_ids": some["input_ids"][i]} for i in order[start : start + 32]]
            batch = tokenizer.pad(chosen, return_tensors="pt")
            hidden = model(**batch).last_hidden_state
            special = torch.isin(batch["input_ids"], torch.tensor(tokenizer.all_special_ids))
            parts.append(hidden[~special])
            found += len(parts[-1])
            if found >= count:
                return torch.cat(parts)[:count]
    return torch.cat(parts)


def _shuffled(rows: Tensor, batch: int) -> Iterator[Tensor]:
    stream = torch.Generator().manual_seed(0)
    for _ in itertools.count():
        for index in torch.randperm(len(rows), generator=stream).split(batch):
            if len(index) == batch:
                yield rows[index]


ARMS = {"ours": ours, "ours_bfloat16": ours_bfloat16, "saelens": saelens}


def run(arm: str, python: str, folder: Path) -> dict[str, float]:
    """Returns what an arm took, in a fresh process."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [python, __file__, "--arm", arm, "--folder", str(folder)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{arm} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def told_to_arms(chosen: argparse.Namespace, folder: Path) -> None:
    """Writes the settings and the texts, which both arms read."""
    from sparsecraft.lab.tasks.docs_retrieval import minilm_directory
    from sparsecraft.lab.tasks.stdlib_docs import docstrings, order, reference_paragraphs

    found = dict.fromkeys([*(doc.text for doc in docstrings()), *reference_paragraphs()])
    texts = sorted((text for text in found if text.strip()), key=order)
    settings = {**vars(chosen), "model": str(minilm_directory())}
    (folder / "told.json").write_text(json.dumps(settings))
    (folder / "texts.json").write_text(json.dumps(texts))


def options() -> argparse.Namespace:
    """Returns the options."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--peers", help="interpreter that has sae_lens and transformers")
    made.add_argument("--fvu", type=float, default=0.3, help="share of variance to reach")
    made.add_argument("--rows", type=int, default=200_000)
    made.add_argument("--times", type=int, default=16)
    made.add_argument("--k", type=int, default=32)
    made.add_argument("--batch", type=int, default=2048)
    made.add_argument("--limit", type=int, default=1500, help="steps at most")
    made.add_argument("--every", type=int, default=20, help="steps between measures of FVU")
    made.add_argument("--threads", type=int, default=2)
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--quick", action="store_true", help="FVU 0.5, 40,000 rows, one round")
    made.add_argument("--arm", choices=list(ARMS), help=argparse.SUPPRESS)
    made.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = made.parse_args()
    if chosen.quick:
        chosen.fvu, chosen.rows, chosen.rounds, chosen.batch, chosen.every = 0.5, 40_000, 1, 1024, 5
    return chosen


def main() -> None:
    """Runs the arms in turn and says whether the bound was met; or runs one arm."""
    chosen = options()
    if chosen.arm:
        told = json.loads((chosen.folder / "told.json").read_text())
        torch.set_num_threads(told["threads"])
        torch.manual_seed(0)
        print(
            json.dumps(
                ARMS[chosen.arm](told, json.loads((chosen.folder / "texts.json").read_text()))
            )
        )
        return
    arms = [name for name in ARMS if name != "saelens" or chosen.peers]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    with tempfile.TemporaryDirectory() as made:
        told_to_arms(chosen, Path(made))
        for _ in range(chosen.rounds):
            for name in arms:
                python = chosen.peers if name == "saelens" else sys.executable
                found[name].append(run(name, python, Path(made)))
    table(found, chosen)


def table(found: dict[str, list[dict[str, float]]], chosen: argparse.Namespace) -> None:
    """Prints medians, and whether the bound was met."""
    print(f"to FVU {chosen.fvu:g}, {chosen.rows} rows, {chosen.times}x, batch {chosen.batch}")
    print(f"{'':16s}{'harvest s':>12s}{'training s':>12s}{'all s':>10s}{'steps':>8s}{'FVU':>9s}")
    total = {}
    for name, runs in found.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        total[name] = statistics.median(run["harvest"] + run["training"] for run in runs)
        print(
            f"{name:16s}{middle['harvest']:12.1f}{middle['training']:12.1f}{total[name]:10.1f}"
            f"{middle['steps']:8.0f}{middle['fvu']:9.4f}"
        )
        if middle["fvu"] > chosen.fvu:
            print(f"  {name} did not reach the FVU in {chosen.limit} steps")
    if "saelens" not in total:
        print("saelens: not installed (--peers)")
        return
    for name in ("ours", "ours_bfloat16"):
        ratio = total["saelens"] / total[name]
        met = "met" if ratio >= MET * BOUND else "not met"
        print(f"{name}: {ratio:.2f}x SAELens, asked {BOUND:g}x: {met}")


if __name__ == "__main__":
    main()
