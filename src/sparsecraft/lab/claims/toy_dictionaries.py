"""Occlusion and over-splitting as claim 34 measures them, with and without a penalty on strength.

Autoencoders with the L1 penalty stand beside TopK, which keeps as many latents as there are values
at once and lets them be as strong as they like.
"""

from __future__ import annotations

from sparsecraft.core.kinds import Activation
from sparsecraft.domains.interpretability import toys
from sparsecraft.methods.codes.relu import ReLU
from sparsecraft.methods.codes.topk import TopK

RATIOS, SPLITTING = (1.0, 1.5, 2.0, 2.5), (2, 64)
KINDS: dict[str, tuple[Activation, Activation]] = {
    "L1": (ReLU(l1=2.0), ReLU(l1=0.3)),
    "TopK": (TopK(k=2), TopK(k=1)),
}
"""For two attributes, and for one."""
WEAKER, SPLIT = "best F1 of the weaker attribute", "latents for each value"


def occluded(kind: str, ratio: float) -> str:
    """Returns the name of an arm whose stronger attribute is so many times the weaker."""
    return f"{kind}, stronger/weaker={ratio:g}"


def splitting(kind: str, latents: int) -> str:
    """Returns the name of an arm with so many latents for two values."""
    return f"{kind}, latents={latents}"


def toy_scores(seed: int, steps: int) -> dict[str, dict[str, float]]:
    """Returns what autoencoders find of two attributes, and of one with two values.

    Args:
        seed: Of data and autoencoders.
        steps: Of the trainings.
    """
    found = {}
    for kind, (of_two, of_one) in KINDS.items():
        for ratio in RATIOS:
            each = toys.occlusion(ratio, seed, of_two, steps)
            found[occluded(kind, ratio)] = {
                WEAKER: each["weak"].f1,
                "best F1 of the stronger attribute": each["strong"].f1,
            }
        for latents in SPLITTING:
            side = toys.over_splitting(latents, seed, of_one, steps)
            found[splitting(kind, latents)] = {
                SPLIT: side.latents,
                "rows that a value's best latent covers": side.recall,
                "best F1 of a value": side.f1,
            }
    return found
