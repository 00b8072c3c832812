"""Group Bias Adaptation (GBA): biases, not penalties, hold each latent to a target frequency.

Chen et al. (2025) train a tied autoencoder without sparsity loss, and let `core.bias_adaptation`
move the encoder's biases so that the latents of group k fire in at most a share p_k of the rows,
with p_k geometric over the groups. In the "jumprelu" form, the paper's default for language models,
the bias decides only whether a latent fires and not how strongly, so that moving it does not shrink
the values. Inputs and directions have norm one, for which the bounds [-1, 0] of the biases are
made: `gba_autoencoder` sets these options.

No code of the authors was read. The published listing seems to have minimum and maximum swapped on
two lines; biases here are kept within their bounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from sparsecraft.core.bias_adaptation import BiasAdaptation, geometric_targets, random_groups
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.code import Code
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.kinds import Elementwise, Own, Side
from sparsecraft.core.kinds.activation import Reduction
from sparsecraft.core.penalties import NonNegativeL1
from sparsecraft.model.sae import SparseAutoencoder

Form = Literal["jumprelu", "relu"]
FORMS: tuple[Form, ...] = get_args(Form)
_POSITIVE = NonNegativeL1(strength=0.0)


@method(
    "gba",
    paper=Paper(
        "Chen et al.",
        2025,
        "2506.14002",
        number=22,
        title="Taming Polysemanticity in LLMs: Provable Feature Recovery via Sparse Autoencoders",
    ),
    taxonomy=Taxonomy(
        of="codes",
        when="during training",
        start_to_end="dense to sparse",
        mask="input-dependent",
        criterion="activation-aware",
        granularity=("unstructured",),
        allocation="any",
        budget="soft",
        needs=("data", "pretrained model"),
        cost="one training of the dictionary",
        runtime="FLOPs",
    ),
)
@dataclass(frozen=True, kw_only=True)
class GroupBiasAdaptation(Elementwise):
    """Moves biases until each group of latents fires at most as often as its target.

    Works with every autoencoder that has an encoder bias; the paper's is tied, with rows and
    directions of norm one, as `gba_autoencoder` makes it.

    Args:
        groups: How many; 1 is the paper's simpler BA, with the frequency `high`.
        high: Target frequency of the first group.
        low: Target frequency of the last group.
        form: "jumprelu" leaves the bias out of the values, "relu" does not.
        step_down: Step down of a bias, in units of the latent's largest pre-activation.
        step_up: Step up of a dead latent's bias, in units of its group's mean largest one.
        floor: A latent that fires less often than this is dead.
        buffer: Rows between two moves of the biases.
        lowest: Lowest bias.
        highest: Highest bias.

    Reference:
        Chen et al., 2025, arXiv 2506.14002, algorithm 1 and eq. 3.
    """

    groups: int = 10
    high: float = 0.1
    low: float = 1e-3
    form: Form = "jumprelu"
    step_down: float = 0.01
    step_up: float = 0.01
    floor: float = 1e-6
    buffer: int = 40_960
    lowest: float = -1.0
    highest: float = 0.0

    moves_bias: ClassVar[bool] = True
    reductions: ClassVar[Mapping[str, Reduction]] = {
        "count": "sum",
        "largest": "max",
        "rows": "sum",
    }

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise UnknownName("form", str(self.form), FORMS)
        if self.form == "jumprelu" and self.highest > 0:
            raise InvalidValue(
                f"highest={self.highest:g} would let negative entries into a code of the form "
                "'jumprelu': give at most 0, or form='relu'"
            )
        # Makes the rule once, for the errors of its settings.
        self.rule()

    def rule(self) -> BiasAdaptation:
        """Returns the controller of the biases."""
        return BiasAdaptation(
            targets=geometric_targets(self.high, self.low, self.groups),
            step_down=self.step_down,
            step_up=self.step_up,
            floor=self.floor,
            buffer=self.buffer,
            lowest=self.lowest,
            highest=self.highest,
        )

    def check(self, d_in: int, d_sae: int) -> None:
        """Raises InvalidValue if there are fewer latents than groups."""
        random_groups(d_sae, self.groups, seed=0)

    def initial(self, d_sae: int, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns the groups, drawn once, and the counters of the buffer."""
        return {}, self.rule().initial(d_sae, seed)

    def apply(self, u: Tensor, own: Own) -> Tensor:
        """Returns u where u > 0, in the "jumprelu" form without the bias: u - b where u > 0."""
        if self.form == "relu":
            return _POSITIVE.prox(u, 1.0)
        return (u - own.bias.detach().to(u.dtype)) * (u > 0)

    def observe(self, u: Tensor, z: Tensor | Code, own: Own, side: Side) -> dict[str, Tensor]:
        """Returns how often and how strongly each latent fired."""
        return self.rule().observe(u)

    def update(self, own: Own, statistics: Mapping[str, Tensor], progress: float) -> None:
        """Counts a batch; moves the biases when the buffer is full."""
        self.rule().update(own.bias, own.state, statistics)


def gba_autoencoder(
    d_in: int, d_sae: int, activation: GroupBiasAdaptation | None = None, *, seed: int = 0
) -> SparseAutoencoder:
    """Returns the paper's autoencoder: tied directions with scales, rows divided by their norm.

    Args:
        d_in: Width of what is encoded.
        d_sae: Latents.
        activation: The groups and their targets; the defaults if left out.
        seed: Of the directions and of the groups.

    Example:
        >>> sae = gba_autoencoder(8, 32)
        >>> sae.tied, sae.row_norm, sae.b_enc.requires_grad
        (True, 'unit', False)
    """
    chosen = GroupBiasAdaptation() if activation is None else activation
    return SparseAutoencoder(d_in, d_sae, chosen, tied=True, row_norm="unit", seed=seed)
