"""ReLU with an L1 penalty: the first sparse autoencoders of language models.

A code is the positive part of the pre-activations, and the L1 norm of the code, weighted by the
norms of the decoder's rows, is added to the loss. With these weights the penalty does not change
when a latent is made smaller and its row longer, so the decoder may be free; with rows of norm one
it is the plain L1 norm. The ReLU is the prox of `NonNegativeL1` whose threshold the encoder's bias
learns.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparsecraft.core import penalties
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.code import Code
from sparsecraft.core.kinds import CodeStep, Elementwise, Own

# The positive part is the prox of "no negative entries" alone.
_POSITIVE = penalties.NonNegativeL1(strength=0.0)


@method(
    "relu_sae",
    paper=Paper(
        "Bricken et al.",
        2023,
        None,
        title="Towards Monosemanticity: Decomposing Language Models With Dictionary Learning",
    ),
    taxonomy=Taxonomy(
        of="codes",
        when="during training",
        start_to_end="dense to sparse",
        mask="input-dependent",
        criterion="optimisation-based",
        granularity=("unstructured",),
        allocation="learned",
        budget="soft",
        needs=("data", "pretrained model"),
        cost="one training of the dictionary",
        runtime="FLOPs",
    ),
)
@dataclass(frozen=True, kw_only=True)
class ReLU(Elementwise):
    """Keeps what is positive, and pays for it by its sum: the classic L1 autoencoder.

    Args:
        l1: What a unit of the code's L1 norm, weighted by decoder norms, adds to the loss; reached
            at the end of the warm-up.

    Example:
        >>> import torch
        >>> u = torch.tensor([[0.5, -2.0]])
        >>> ReLU(l1=0.1).apply(u, Own(torch.zeros(2))).tolist()
        [[0.5, 0.0]]

    Reference:
        Bricken et al., 2023, transformer-circuits.pub/2023/monosemantic-features; the weights are
        those of Conerly et al., 2024, transformer-circuits.pub/2024/april-update.
    """

    l1: float = 5.0

    def __post_init__(self) -> None:
        penalties.check_strength(self.l1)

    def apply(self, u: Tensor, own: Own) -> Tensor:
        """Returns max(u, 0)."""
        return _POSITIVE.prox(u, 1.0)

    def losses(self, step: CodeStep, own: Own) -> dict[str, Tensor]:
        """Returns l1 * warmth * mean over rows of sum_j z_j ||d_j||."""
        return {"l1": self.l1 * step.warmth * weighted_l1(step.z, step.decoder)}


def weighted_l1(z: Tensor | Code, decoder: Tensor) -> Tensor:
    """Returns the mean over rows of sum_j z_j ||d_j||, for codes that are not negative.

    Args:
        z: (rows, d_sae).
        decoder: (d_sae, d_out).
    """
    dense = z.dense() if isinstance(z, Code) else z
    return (dense @ decoder.norm(dim=1).to(dense.dtype)).mean()
