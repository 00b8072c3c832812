"""Whole-model decoding of a generated Llama: dense, gated, and with half of its weights.

A model of the asked shape with random weights (so speed only) decodes token after token behind a
context, head dense and included. Within each type the contenders decode in turn: PyTorch's own
products, the best dense path (`pack` with dense formats alone), gates at 65 % of the inputs of
every matrix of the blocks (TEAL's thresholds, chosen on random tokens), and, on a model whose
weights are half zeros by magnitude, the sparse formats. A ratio is one of medians over the rounds.

Run: python benchmarks/bench_decode.py [--quick] [--layers 16] [--types float32 bfloat16 int8]
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sparsecraft
from sparsecraft.kernels.linear import native_status
from sparsecraft.model.runtime.timing import clock_of

ASKED = {"gate": 1.9, "weights": 1.5}
COUNTS_AS_MET = 0.9
PRUNED = 0.5
DENSE = ("torch", "dense")


@dataclass(frozen=True)
class Arm:
    """A contender: its model, what it is, and what its layers hold."""

    name: str
    model: nn.Module
    megabytes: float
    chosen: str


def generated(options: argparse.Namespace, dtype: torch.dtype) -> nn.Module:
    """Returns a Llama of the asked shape with random weights, made in its type from the start."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=options.hidden,
        intermediate_size=options.ffn,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=options.hidden // 64,
        vocab_size=options.vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def same_weights(model: nn.Module) -> nn.Module:
    """Returns a copy of the modules that shares every weight."""
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


def halved(model: nn.Module) -> nn.Module:
    """Sets the smaller half of each matrix of the blocks to zero, in place."""
    sparsecraft.prune(model, "magnitude", sparsity=PRUNED)
    return model


def gated(model: nn.Module, options: argparse.Namespace) -> nn.Module:
    """Gates a copy that shares the weights, with thresholds from random tokens."""
    twin = same_weights(model)
    ids = torch.randint(options.vocabulary, (1, 256), generator=torch.Generator().manual_seed(1))
    sparsecraft.gate(
        twin, "teal", rule="threshold", sparsity=options.sparsity, calibration=[{"input_ids": ids}]
    )
    return twin


def packed(name: str, model: nn.Module, example: dict[str, Any], **settings: Any) -> Arm:
    """Returns the arm of a model after packing; nothing of the exact weights is kept for it."""
    begin = time.perf_counter()
    made = sparsecraft.pack(
        model, batch_sizes=(1,), example=example, keep_original=False, **settings
    )
    kinds: dict[str, int] = {}
    for choice in made.record.choices:
        kinds[choice.chosen] = kinds.get(choice.chosen, 0) + 1
    chosen = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    kept = [choice.kept for choice in made.record.choices if choice.chosen.startswith("gated")]
    share = f" (kept {statistics.mean(kept):.2f})" if kept else ""
    print(f"  packed {name} in {time.perf_counter() - begin:.0f} s: {chosen}{share}", flush=True)
    return Arm(name, model, made.bytes / 1e6, chosen + share)


def as_it_is(name: str, model: nn.Module) -> Arm:
    """Returns the arm of a model that is not packed."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    size = sum(layer.weight.nbytes for layer in layers)
    return Arm(name, model, size / 1e6, f"{len(layers)} as they are")


def gate_arms(dtype: str, options: argparse.Namespace, example: dict[str, Any]) -> list[Arm]:
    """Returns the dense arms and the gated one of a type, on one set of weights."""
    own = torch.float32 if dtype == "float32" else torch.bfloat16
    model = generated(options, own)
    settings = {"dtypes": (dtype,), "formats": DENSE}
    arms = [packed(f"best dense {dtype}", same_weights(model), example, **settings)]
    if dtype == "int8":
        for low in ("int8", "int4"):
            rough = {"dtypes": (low,), "formats": ("torch",), "tolerance": 0.3}
            arms.append(packed(f"torch {low}", same_weights(model), example, **rough))
    else:
        arms.append(as_it_is(f"torch {dtype}", model))
    twin = gated(model, options)
    settings["formats"] = (*DENSE, "gated", "by_input")
    arms.append(packed(f"gate {options.sparsity:.0%} {dtype}", twin, example, **settings))
    return arms


def weight_arms(dtype: str, options: argparse.Namespace, example: dict[str, Any]) -> list[Arm]:
    """Returns the best dense arm and the weight-sparse one of a type, on half of the weights."""
    own = torch.float32 if dtype == "float32" else torch.bfloat16
    model = halved(generated(options, own))
    settings = {"dtypes": (dtype,), "formats": DENSE}
    dense = packed(f"best dense {dtype}", same_weights(model), example, **settings)
    settings["formats"] = (*DENSE, "bitmask", "csr")
    return [dense, packed(f"weights {PRUNED:.0%} {dtype}", model, example, **settings)]


def decoder(arm: Arm, prompt: torch.Tensor, tokens: int) -> Callable[[], float]:
    """Returns a function that decodes greedily behind the prompt and returns tokens a second."""
    from transformers import DynamicCache

    cache = DynamicCache()
    with torch.inference_mode():
        first = arm.model(prompt, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1)

    clock = clock_of(prompt)

    def run() -> float:
        surplus = cache.get_seq_length() - prompt.shape[1]
        if surplus:
            cache.crop(-surplus)
        token = first
        with torch.inference_mode():
            begin = clock()
            for _ in range(tokens):
                out = arm.model(token[:, None], past_key_values=cache, use_cache=True)
                token = out.logits[:, -1].argmax(-1)
        return tokens / (clock() - begin)

    return run


def measure(arms: list[Arm], options: argparse.Namespace, kind: str) -> list[dict[str, Any]]:
    """Returns rows of the table: every arm decodes once in each round, in alternating order."""
    prompt = torch.randint(
        options.vocabulary, (1, options.context), generator=torch.Generator().manual_seed(2)
    )
    runs = {arm.name: decoder(arm, prompt, options.tokens) for arm in arms}
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(options.rounds + 1):
        for name in runs if turn % 2 else reversed(runs):
            rate = runs[name]()
            if turn:
                rates[name].append(rate)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    best = medians[arms[0].name]
    rows = []
    for arm in arms:
        row = {"arm": arm.name, "tokens_per_second": medians[arm.name], "megabytes": arm.megabytes}
        row |= {"over_best_dense": medians[arm.name] / best, "chosen": arm.chosen}
        row |= {"slowest": min(rates[arm.name]), "fastest": max(rates[arm.name])}
        if arm.name.startswith(kind):
            row["asked"] = ASKED[kind]
            row["met"] = row["over_best_dense"] >= COUNTS_AS_MET * ASKED[kind]
        rows.append(row)
    return rows


def shown(rows: list[dict[str, Any]]) -> None:
    """Prints the rows of one group."""
    for row in rows:
        bound = ""
        if "asked" in row:
            bound = f"asked {row['asked']}x: {'met' if row['met'] else 'NOT met'}"
        print(
            f"{row['arm']:22s}{row['tokens_per_second']:10.2f}"
            f"  [{row['slowest']:.2f}, {row['fastest']:.2f}]".ljust(50)
            + f"{row['megabytes']:10.0f}{row['over_best_dense']:12.2f}x  {bound}",
            flush=True,
        )


def main() -> None:
    """Measures the types one after the other, gates first and weights second."""
    options = parsed()
    torch.set_num_threads(options.threads)
    status = native_status()
    print(f"threads {options.threads}, native {status['isa']} {status['features']}")
    print(
        f"{'arm':22s}{'tokens/s':>10s}{'range':>16s}{'MB of layers':>14s}{'over best dense':>17s}"
    )
    rows: list[dict[str, Any]] = []
    example = {
        "input_ids": torch.randint(
            options.vocabulary, (1, 64), generator=torch.Generator().manual_seed(3)
        )
    }
    makers = {"gate": gate_arms, "weights": weight_arms}
    for dtype in options.types:
        for kind in options.kinds:
            group = measure(makers[kind](dtype, options, example), options, kind)
            gc.collect()
            shown(group)
            rows += [{"type": dtype, "kind": kind, **row} for row in group]
    print(f"a bound counts as met from {COUNTS_AS_MET:.0%} of it on")
    if options.json:
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        report = {"settings": settings, "native": status, "rows": rows}
        options.json.write_text(json.dumps(report, indent=1, default=str) + "\n")


def parsed() -> argparse.Namespace:
    """Returns the options; --quick shrinks whatever was not given."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model, few tokens")
    full = {"layers": 16, "hidden": 2048, "ffn": 5632, "vocabulary": 32000, "tokens": 64}
    quick = {"layers": 2, "hidden": 512, "ffn": 1408, "vocabulary": 4000, "tokens": 8}
    for name in full:
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sparsity", type=float, default=0.65)
    parser.add_argument("--types", nargs="+", default=["float32", "bfloat16", "int8"])
    parser.add_argument("--kinds", nargs="+", choices=sorted(ASKED), default=sorted(ASKED))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    for name, value in (quick if options.quick else full).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


if __name__ == "__main__":
    main()
