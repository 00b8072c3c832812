"""The one rule by which a seed becomes a random stream."""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *labels: object) -> int:
    """Returns a 63-bit seed for one stream, fixed by the seed and the labels alone.

    A layer's stream thus depends on its name, not on how many layers were drawn before it, so
    that adding or skipping a layer leaves every other mask as it was.

    Example:
        >>> derive(0, "layer.1") == derive(0, "layer.1"), derive(0, "a") == derive(0, "b")
        (True, False)
    """
    text = "\x1f".join([str(int(seed)), *map(str, labels)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *labels: object) -> torch.Generator:
    """Returns a CPU generator for the stream of these labels.

    Random numbers are always drawn on the CPU and moved, so that every device gives one mask.
    """
    return torch.Generator().manual_seed(derive(seed, *labels))
