"""What a Sparsifier costs a training step, on a language model of 10M parameters.

Limits: at most 5 % of a step where no mask changes, at most 15 % where N:M masks are made anew in
every forward pass, and a RigL update at most 1.5 dense steps. 8 windows of 256 tokens, AdamW, two
threads; every arm has a model of its own and takes one step in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsecraft import Sparsifier
from sparsecraft.methods.weights.rigl import RigL

ROUNDS = 11
EVERY = 4  # RigL's updates come at every fourth step, so that both kinds are timed
LIMITS = {
    "static": 1.05,
    "gradual magnitude, between": 1.05,
    "rigl, between": 1.05,
    "ste 2:4": 1.15,
    "sr-ste 2:4": 1.15,
    "mdgf 1:16": 1.15,
    "rigl, update": 2.5,
}
"""As multiples of a dense step; an update's own cost is what it takes beyond its step."""


@dataclass
class Arm:
    """A training: one step of it is timed at a time."""

    step: Callable[[], None]

    def seconds(self) -> float:
        """Returns the wall time of one step."""
        begin = time.perf_counter()
        self.step()
        return time.perf_counter() - begin


def language_model() -> torch.nn.Module:
    """Returns an untrained Llama of 10M parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=384,
        intermediate_size=1024,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=6,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def arm(ids: Tensor, method: str | RigL | None, **options: object) -> Arm:
    """Returns a training under a method, or dense."""
    model = language_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    sparsifier = None
    if method is not None:
        sparsifier = Sparsifier(model, method, total_steps=1000, **options).attach(optimizer)

    def step() -> None:
        optimizer.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        (loss if sparsifier is None else loss + sparsifier.loss()).backward()
        optimizer.step()

    return Arm(step)


def main() -> None:
    """Prints each arm's step beside the dense one of the same round."""
    torch.set_num_threads(2)
    ids = torch.randint(4096, (8, 256), generator=torch.Generator().manual_seed(0))
    arms = {
        "dense": arm(ids, None),
        "dense again": arm(ids, None),
        "static": arm(ids, "static", sparsity=0.9),
        "gradual magnitude": arm(ids, "gradual_magnitude", sparsity=0.9, begin_at=0.5),
        "rigl": arm(ids, RigL(sparsity=0.9, every=EVERY)),
        "ste 2:4": arm(ids, "ste", pattern="2:4"),
        "sr-ste 2:4": arm(ids, "sr_ste", pattern="2:4"),
        "mdgf 1:16": arm(ids, "mdgf", pattern="1:16"),
    }
    for each in arms.values():
        each.step()  # a warm-up: kernels are compiled, moments made
    ratios: dict[str, list[float]] = {}
    dense: list[float] = []
    for number in range(2, ROUNDS + 2):
        seconds = {name: each.seconds() for name, each in arms.items()}
        dense.append(seconds["dense"])
        for name, taken in seconds.items():
            label = name
            if name == "rigl":
                label = f"rigl, {'update' if number % EVERY == 0 else 'between'}"
            if name == "gradual magnitude":
                label = f"{name}, between"
            ratios.setdefault(label, []).append(taken / seconds["dense"])
    numel = sum(p.numel() for p in language_model().parameters())
    print(f"{numel / 1e6:.1f}M parameters, dense step {1000 * statistics.median(dense):.0f} ms")
    print("| arm | step / dense step | range | limit |")
    print("|---|---|---|---|")
    for name, found in ratios.items():
        limit = f"{LIMITS[name]:.2f}" if name in LIMITS else ""
        middle = statistics.median(found)
        print(f"| {name} | {middle:.3f} | {min(found):.3f} to {max(found):.3f} | {limit} |")


if __name__ == "__main__":
    main()
