"""The control of all gates: a random subset of every token's entries.

What a gate gains over dropping entries at random is what its score knows. Lee et al. (2024) and
Liu et al. (2024) have no such arm; the library's comparisons always do. The subset depends on the
seed, the place and the token's own values, so it is the same in any process.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.gating import ActivationGate, RandomGate
from sparsecraft.core.kinds import GateSite
from sparsecraft.core.seeds import derive
from sparsecraft.methods.activations.input_gates import InputGate


@method(
    "random_gate",
    paper=Paper(
        "Liu et al.",
        2024,
        "2408.14690",
        title="Training-Free Activation Sparsity in Large Language Models",
    ),
    taxonomy=Taxonomy(
        of="activations",
        when="at inference",
        start_to_end="dense to dense",
        mask="input-dependent",
        criterion="random",
        granularity=("unstructured",),
        allocation="any",
        budget="hard per layer",
        needs=("pretrained model",),
        cost="none",
        runtime="none",
    ),
)
@dataclass(frozen=True, kw_only=True)
class RandomInputGate(InputGate):
    """Keeps a random subset of every token's entries: the control beside the other gates.

    Reference:
        A control; the setting is that of Liu et al., 2024, arXiv 2408.14690.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule != "topk":
            raise InvalidValue(
                f"random_gate keeps an exact count; rule={self.rule!r} has no meaning for it"
            )

    def fit(self, site: GateSite) -> ActivationGate:
        """Returns the gate of a site, with a random stream of its own."""
        seed = derive(site.seed, "gate", site.name)
        return RandomGate(keep=site.keep(), prefill=self.prefill, seed=seed)
