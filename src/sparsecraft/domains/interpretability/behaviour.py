"""What is left of a model's behaviour when activations are replaced by their reconstructions.

For language models that is the loss of the next token and the divergence of its prediction; for
encoders, which predict nothing, the divergence between the softmaxes of in-batch similarities of
clean and patched embeddings. Both are set between the clean model (1) and an ablation (0), of which
there are two: zero, the usual one and the easier, and the mean of the data. Only tokens of the
store are replaced and counted, so special tokens and padding are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.domains.interpretability.model_answers import (
    KINDS,
    Kind,
    answer,
    device_of,
    log_predictions,
    log_similarities,
    reader_of,
)
from sparsecraft.model.activation_store import ActivationStore
from sparsecraft.model.hook_points import hook_point
from sparsecraft.model.sae.estimator import evaluating

Replace = Callable[[Tensor], Tensor]
"""From rows (n, d) to what stands in their place."""


@dataclass(frozen=True)
class Recovered:
    """A loss with the activations themselves, with reconstructions, and ablated.

    Args:
        clean: Nothing replaced; 0 for a divergence.
        reconstructed: With reconstructions.
        zero: With zeros.
        mean: With the mean of the data.
    """

    clean: float
    reconstructed: float
    zero: float
    mean: float

    @property
    def over_zero(self) -> float:
        """(zero - reconstructed) / (zero - clean): 1 is the clean model, 0 is zero ablation."""
        return _share(self.zero, self.reconstructed, self.clean)

    @property
    def over_mean(self) -> float:
        """The same with mean ablation as 0."""
        return _share(self.mean, self.reconstructed, self.clean)


@dataclass(frozen=True)
class Behaviour:
    """What is left of the behaviour.

    Args:
        kind: "next token" or "similarity".
        contexts: How many were read.
        tokens: How many were replaced.
        loss: Nats of the next token; None for an encoder.
        divergence: KL from the clean prediction (nats a token), or from the clean similarities
            (nats a text).
        remark: What must be known of the kind, or None.
    """

    kind: str
    contexts: int
    tokens: int
    loss: Recovered | None
    divergence: Recovered
    remark: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns it as plain values, with the shares recovered."""
        found: dict[str, Any] = {**asdict(self)}
        for name, each in (("loss", self.loss), ("divergence", self.divergence)):
            if each is not None:
                found[name] |= {"over_zero": each.over_zero, "over_mean": each.over_mean}
        return found


@torch.no_grad()
def behaviour(
    model: nn.Module,
    store: ActivationStore,
    replace: Replace,
    mean: Tensor,
    *,
    kind: Kind = "auto",
    contexts: int = 128,
    batch: int = 32,
    progress: Callable[[str, int, int], None] | None = None,
) -> Behaviour:
    """Returns what is left of the model's behaviour on the first contexts of a store.

    Args:
        model: Whose activations the store holds; its mode is restored.
        store: With its token ids.
        replace: From activations to reconstructions.
        mean: (d,), of the data.
        kind: "next token", "similarity", or "auto": by what the model returns, and whether its
            predictions see the tokens behind them.
        contexts: How many at most.
        batch: Contexts in a forward pass; similarities are those within a batch.
        progress: Told (stage, contexts done, contexts in all).

    Raises:
        UnknownName: For an unknown kind.
        InvalidValue: If the store has no token ids, or the model returns nothing that is known.
    """
    if kind not in KINDS:
        raise UnknownName("kind of behaviour", str(kind), KINDS)
    ids, chosen = _texts(store, contexts)
    arms: dict[str, Replace | None] = {
        "clean": None,
        "reconstructed": replace,
        "zero": torch.zeros_like,
        "mean": lambda x: mean.to(x).expand_as(x),
    }
    device, at = device_of(model), store.at or ""
    with evaluating(model):
        reader = reader_of(model, at, kind, ids)
        totals = _Totals(reader.kind)
        for start in range(0, len(ids), batch):
            tokens = ids[start : start + batch].to(device)
            mask = chosen[start : start + batch].to(device)
            found = {}
            for name, each in arms.items():
                with ExitStack() as stack:
                    if each is not None:
                        stack.enter_context(replaced(model, at, mask, each))
                    found[name] = answer(reader.module, tokens)
            totals.add(found, tokens, mask)
            if progress is not None:
                progress("behaviour", min(start + batch, len(ids)), len(ids))
    return totals.behaviour(len(ids), int(chosen.sum()), reader.remark)


class _Totals:
    """Sums over batches, by arm."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self.loss: dict[str, float] = {}
        self.divergence: dict[str, float] = {}
        self.counted = 0

    def add(self, outputs: dict[str, Any], tokens: Tensor, mask: Tensor) -> None:
        """Takes the outputs of all arms on one batch into account."""
        if self.kind == "similarity":
            self._add_similarities(outputs, tokens)
        else:
            self._add_predictions(outputs, tokens, mask)

    def behaviour(self, contexts: int, tokens: int, remark: str | None) -> Behaviour:
        """Returns the means."""
        if not self.counted:
            raise InvalidValue(
                "nothing can be compared: no token of the store has one behind it, or only one "
                "text was given"
            )
        divergence = {name: total / self.counted for name, total in self.divergence.items()}
        loss = {name: total / self.counted for name, total in self.loss.items()}
        return Behaviour(
            self.kind,
            contexts,
            tokens,
            Recovered(**loss) if loss else None,
            Recovered(**divergence),
            remark,
        )

    def _add_predictions(self, outputs: dict[str, Any], tokens: Tensor, mask: Tensor) -> None:
        counts = mask[:, :-1] & (tokens[:, 1:] >= 0)
        self.counted += int(counts.sum())
        clean = log_predictions(outputs["clean"], counts)
        for name, output in outputs.items():
            found = log_predictions(output, counts)
            following = tokens[:, 1:][counts].long().to(found.device)
            loss = F.nll_loss(found, following, reduction="sum")
            self.loss[name] = self.loss.get(name, 0.0) + float(loss.double())
            self._add_divergence(name, clean, found)

    def _add_similarities(self, outputs: dict[str, Any], tokens: Tensor) -> None:
        if len(tokens) < 2:
            return
        self.counted += len(tokens)
        clean = log_similarities(outputs["clean"], tokens)
        for name, output in outputs.items():
            self._add_divergence(name, clean, log_similarities(output, tokens))

    def _add_divergence(self, name: str, clean: Tensor, found: Tensor) -> None:
        divergence = F.kl_div(found, clean, log_target=True, reduction="none").sum(-1)
        total = self.divergence.get(name, 0.0)
        self.divergence[name] = total + float(divergence.double().sum())


def _texts(store: ActivationStore, contexts: int) -> tuple[Tensor, Tensor]:
    """Returns token ids (contexts, length), -1 for padding, and which of them the store holds."""
    tokens, place = store.tokens, store.place(torch.arange(len(store)))
    if tokens is None or place is None:
        raise InvalidValue(
            "this store has no token ids, so the model cannot be run again on its text: make it "
            "from a model and a text, or leave the model out"
        )
    numbers, positions = place
    chosen = torch.zeros(tokens.shape, dtype=torch.bool)
    chosen[numbers, positions] = True
    used = chosen.any(1).nonzero().flatten()[:contexts]
    return tokens[used], chosen[used]


@contextmanager
def replaced(model: nn.Module, at: str, mask: Tensor, replace: Replace) -> Iterator[None]:
    """Within the block, the activations at a hook point where the mask is True are others.

    Args:
        model: Any module.
        at: Hook point that gives (contexts, tokens, d).
        mask: bool (contexts, tokens).
        replace: From rows (n, d) to others.
    """

    def edit(hidden: Tensor) -> Tensor:
        changed, where = hidden.clone(), mask.to(hidden.device)
        changed[where] = replace(hidden[where]).to(hidden)
        return changed

    handle = hook_point(model, at).replace(edit)
    try:
        yield
    finally:
        handle.remove()


def _share(ablated: float, reconstructed: float, clean: float) -> float:
    """Returns the share recovered, nan where the ablation changes nothing."""
    # A loss is a few nats; what differs by less than this is rounding.
    if abs(ablated - clean) < 1e-7:
        return float("nan")
    return (ablated - reconstructed) / (ablated - clean)
