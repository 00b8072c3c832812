"""MLPs of which each token computes with its k largest activations only.

Li et al. (2022) train transformers whose MLPs keep, after the ReLU, the k largest entries of every
token: y = V Top_k(relu(K x + b1)) + b2. They are as good as dense ones, and better calibrated and
less disturbed by noise in labels and inputs. `apply_topk` puts this into a model to be trained,
from the first step; `TopKMLP` is such a layer for a model of one's own.

Reference:
    Li et al., 2022, arXiv 2210.06313, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from sparsecraft.core.errors import InvalidValue, NoMatch
from sparsecraft.core.topk import check_topk, kept_of
from sparsecraft.model.mlp_sites import MLPSite, find_mlp_sites
from sparsecraft.model.topk_activation import (
    REPLACEMENTS,
    TopKActivation,
    TopKMLP,
    check_replacement,
    replaced_by,
)

__all__ = ["TopKActivation", "TopKMLP", "TopKReport", "apply_topk", "replace_activations"]


@dataclass(frozen=True)
class TopKReport:
    """Where top-k was put into a model.

    Args:
        layers: (MLP, entries kept, entries, the activation before the choice), in model order.
            Entries are 0 where a model without blocks does not tell them.
        post_hoc: Whether the model was trained without it.
        notes: What was left out and why, and what else changed, in plain words.
    """

    layers: tuple[tuple[str, int, int, str], ...]
    post_hoc: bool
    notes: tuple[str, ...]

    @property
    def label(self) -> str:
        """How results with this model must be called."""
        return "top-k post hoc" if self.post_hoc else "trained with top-k"

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values."""
        names = ("name", "kept", "of", "activation")
        return {
            "label": self.label,
            "layers": [dict(zip(names, row, strict=True)) for row in self.layers],
            "notes": list(self.notes),
        }


def apply_topk(
    model: nn.Module,
    *,
    k: int | None = None,
    fraction: float | None = None,
    replace_activation: str | None = "relu",
    targets: str | Sequence[str] | None = None,
    post_hoc: bool = False,
) -> TopKReport:
    """Puts top-k activations into the MLPs of a model, in place, and returns where.

    Do this before the training. `sparsecraft.save(model, directory, form="augmented")` keeps them.
    To try top-k on a model that was trained without it, `sparsecraft.gate(model, "topk_mlp",
    k=...)` can be undone.

    Args:
        model: Any module whose activations are modules, Hugging Face models in particular.
        k: How many entries each token keeps.
        fraction: Or their share, rounded half up, at least one.
        replace_activation: "relu", as the paper has it, or None for the model's own.
        targets: Globs over MLPs; None takes all, see `find_mlp_sites`.
        post_hoc: Whether the model is trained already; said in the report.

    Raises:
        InvalidValue: If k or fraction is not allowed, k exceeds an MLP's entries, or a chosen
            activation has top-k already; the model is unchanged.
        NoMatch: If no activation can be replaced.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 4))
        >>> apply_topk(net, k=2).layers
        (('1', 2, 0, 'ReLU'),)
        >>> net[1]
        TopKActivation(
          k=2, replaced=relu
          (activation): ReLU()
        )
    """
    check_topk(k, fraction)
    check_replacement(replace_activation)
    sites, notes = _replaceable(model, targets)
    modules = dict(model.named_modules(remove_duplicate=False))
    rows = []
    for site in sites:
        before = modules[site.activation]
        if isinstance(before, TopKActivation):
            raise InvalidValue(f"{site.activation} has top-k already: {before.extra_repr()}")
        kept = kept_of(site.hidden, k, fraction, site.name) if site.hidden else k or 0
        after = type(replaced_by(before, replace_activation)).__name__
        rows.append((site.name, kept, site.hidden, after))
    notes += _put_in(model, sites, k, fraction, replace_activation, post_hoc)
    return TopKReport(tuple(rows), post_hoc, tuple(notes))


def replace_activations(
    model: nn.Module, replacement: str | None, targets: str | Sequence[str] | None = None
) -> dict[str, nn.Module]:
    """Replaces the activations of a model's MLPs, in place, without any choice of entries.

    Args:
        model: Any module whose activations are modules.
        replacement: Name in `REPLACEMENTS`; None changes nothing.
        targets: Globs over MLPs; None takes all.

    Returns:
        Module name to what stood there before.
    """
    check_replacement(replacement)
    before: dict[str, nn.Module] = {}
    if replacement is None:
        return before
    modules = dict(model.named_modules(remove_duplicate=False))
    for site in _replaceable(model, targets)[0]:
        old = modules[site.activation]
        if not isinstance(old, REPLACEMENTS[replacement]):
            before[site.activation] = old
            new = TopKActivation(replaced_by(old, replacement), replaced=replacement, post_hoc=True)
            model.set_submodule(site.activation, new)
    return before


def _replaceable(
    model: nn.Module, targets: str | Sequence[str] | None
) -> tuple[list[MLPSite], list[str]]:
    """Returns one site for each activation module, and a note on every MLP without one."""
    sites = find_mlp_sites(model, targets)
    has_convolutions = any(
        isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d) for m in model.modules()
    )
    chosen: dict[str, MLPSite] = {}
    notes = []
    for site in sites:
        if not site.activation:
            notes.append(
                f"{site.name}: left dense, its activation is a function and no module; write it "
                "as one (nn.ReLU()), or use TopKMLP"
            )
        elif not site.hidden and has_convolutions:
            notes.append(f"{site.name}: left dense, it belongs to no MLP of repeated blocks")
        else:
            chosen.setdefault(site.activation, site)
    if not chosen:
        raise NoMatch("no activation of the model can be given a top-k. " + " ".join(notes))
    return list(chosen.values()), notes


def _put_in(
    model: nn.Module,
    sites: Sequence[MLPSite],
    k: int | None,
    fraction: float | None,
    replacement: str | None,
    post_hoc: bool,
) -> list[str]:
    modules = dict(model.named_modules(remove_duplicate=False))
    swapped: dict[str, None] = {}
    for site in sites:
        before = modules[site.activation]
        after = replaced_by(before, replacement)
        if after is not before:
            swapped[type(before).__name__] = None
        module = TopKActivation(
            after,
            k=k,
            fraction=fraction,
            replaced=None if after is before else replacement,
            post_hoc=post_hoc,
        )
        model.set_submodule(site.activation, module)
    notes = [f"{name} was replaced by {replacement}" for name in swapped]
    if post_hoc:
        notes.append("post hoc: the model was not trained with it; this is no trained top-k model")
    return notes
