"""When the pre-activations of a batch need never be formed whole.

Of a dictionary of many latents they are the largest tensor of a training step by far. An activation
that keeps the largest of each row, and looks at nothing else, is served by a selection that forms
some rows at a time.
"""

from __future__ import annotations

from sparsecraft.core.kinds import Activation, Selecting


def ranks_rows(activation: Activation) -> bool:
    """Returns whether a code is the largest pre-activations of each row, by the usual rule."""
    kind = type(activation)
    return (
        isinstance(activation, Selecting)
        and kind.scores is Selecting.scores  # type: ignore[attr-defined]
        and kind.select is Selecting.select  # type: ignore[attr-defined]
        and activation.penalty().scope == "token"
    )
