"""From the activations of batches to the rows of shards: what is kept, counted, and divided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.model.activation_store.inputs import Inputs, Source
from sparsecraft.model.activation_store.recorder import Recorded
from sparsecraft.model.activation_store.settings import HarvestSettings
from sparsecraft.model.activation_store.special_tokens import special_mask
from sparsecraft.model.activation_store.table import NO_TOKEN, Shard
from sparsecraft.model.hook_points import HookPoint

COUNTS = ("special", "padding", "non_finite")
_SHOWN = 3
_PLURAL = {"x": "activations", "gradient": "gradients", "target": "targets"}


@dataclass
class Piece:
    """Some contexts on their way to a shard.

    Args:
        parts: By place and part ("x", "gradient", "target"): the kept rows of each batch.
        counts: int32 (contexts,) of each batch.
        positions: int32 (rows,) of each batch.
        tokens: (contexts, tokens) of each batch, or empty.
        left_out: Rows that were left out, by reason.
        batches: How many batches there are.
    """

    parts: dict[str, dict[str, list[Tensor]]] = field(default_factory=dict)
    counts: list[Tensor] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    batches: int = 0

    @property
    def rows(self) -> int:
        """Rows so far."""
        return sum(map(len, self.positions))

    @property
    def contexts(self) -> int:
        """Contexts so far."""
        return sum(map(len, self.counts))

    def bytes(self) -> int:
        """Returns the size of the largest place's rows."""
        sizes = [
            sum(t.numel() * t.element_size() for rows in of_place.values() for t in rows)
            for of_place in self.parts.values()
        ]
        return max(sizes, default=0)

    def add(self, other: Piece) -> None:
        """Takes over what a later piece has."""
        for place, of_place in other.parts.items():
            for part, rows in of_place.items():
                self.parts.setdefault(place, {}).setdefault(part, []).extend(rows)
        for name in ("counts", "positions", "tokens"):
            getattr(self, name).extend(getattr(other, name))
        for reason, count in other.left_out.items():
            self.left_out[reason] += count
        self.batches += other.batches

    def shard(self, place: str) -> Shard:
        """Returns the shard of one place."""
        longest = max((part.shape[1] for part in self.tokens), default=0)
        padded = [
            torch.nn.functional.pad(part, (0, longest - part.shape[1]), value=NO_TOKEN)
            for part in self.tokens
        ]
        return Shard(
            counts=torch.cat(self.counts),
            positions=torch.cat(self.positions),
            tokens=torch.cat(padded) if padded else None,
            **{part: torch.cat(rows) for part, rows in self.parts[place].items()},
        )


@dataclass(frozen=True)
class Keeper:
    """Decides which rows of a batch are kept.

    Args:
        points: The places whose rows are kept, all with the same positions.
        target: The place of the targets, or None.
        source: For the special tokens, and to say which text is meant.
        settings: Of the harvest.
    """

    points: Sequence[HookPoint]
    target: HookPoint | None
    source: Source
    settings: HarvestSettings

    def wanted(self, inputs: Inputs) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Returns bool (contexts, tokens) of a batch with tokens, and what is left out and why."""
        if inputs.tokens is None:
            return None, {}
        real = torch.ones_like(inputs.tokens, dtype=torch.bool).cpu()
        if inputs.real is not None:
            real = inputs.real
        special = special_mask(inputs.tokens.cpu(), self.source.special)
        special[:, : self.settings.skip_first] = True
        return real & ~special, {"special": real & special, "padding": ~real}

    def piece(self, inputs: Inputs, recorded: Recorded, first: int, most: int | None) -> Piece:
        """Returns the kept rows of a batch.

        Args:
            inputs: The batch.
            recorded: What the model gave.
            first: The number of its first context, for messages.
            most: Rows at most, or None.

        Raises:
            InvalidValue: If places differ in their positions, or all gradients are zero.
            NonFinite: If a value is not finite and such rows are not to be left out.
        """
        shape = self._shape(recorded)
        keep, left_out = self.wanted(inputs)
        if keep is not None and keep.shape != shape and shape[1] > 1:
            raise InvalidValue(
                f"{self.points[0].name} has (contexts, positions) {shape}, and the tokens are "
                f"{tuple(keep.shape)}: name a place with one position for each token"
            )
        if keep is None or keep.shape != shape:
            keep, left_out = torch.ones(shape, dtype=torch.bool), {}
        stored = self._stored(recorded)
        finite = self._finite(stored, shape)
        bad = keep & ~finite
        if bool(bad.any()) and not self.settings.skip_non_finite:
            raise NonFinite(self._complaint(bad, inputs, first, stored))
        keep = keep & finite
        left_out = {**left_out, "non_finite": bad}
        self._check_gradients(recorded, keep)
        contexts = len(keep)
        if most is not None and int(keep.sum()) > most:
            keep, contexts = _first(keep, most)
        return self._cut(stored, inputs, keep, contexts, left_out)

    def _cut(
        self,
        stored: Mapping[str, Mapping[str, Tensor]],
        inputs: Inputs,
        keep: Tensor,
        contexts: int,
        left_out: Mapping[str, Tensor],
    ) -> Piece:
        keep = keep[:contexts]
        piece = Piece(batches=1)
        for place, of_place in stored.items():
            piece.parts[place] = {part: [v[:contexts][keep]] for part, v in of_place.items()}
        piece.counts.append(keep.sum(1, dtype=torch.int32))
        piece.positions.append(keep.nonzero()[:, 1].int())
        if inputs.tokens is not None:
            tokens = inputs.tokens.cpu().int()
            real = inputs.real
            shown = tokens if real is None else torch.where(real, tokens, NO_TOKEN)
            piece.tokens.append(shown[:contexts])
        piece.left_out.update({why: int(m[:contexts].sum()) for why, m in left_out.items()})
        return piece

    def _shape(self, recorded: Recorded) -> tuple[int, int]:
        shapes = {place: tuple(value.shape[:2]) for place, value in recorded.values.items()}
        first = next(iter(shapes.values()))
        if len(set(shapes.values())) > 1:
            listed = ", ".join(f"{place} {shape}" for place, shape in shapes.items())
            raise InvalidValue(
                f"the places differ in their (contexts, positions): {listed}; they must agree"
            )
        return first[0], first[1]

    def _stored(self, recorded: Recorded) -> dict[str, dict[str, Tensor]]:
        """Returns by place and part what is written, in the type in which it is written."""
        dtype = self.settings.dtype
        stored: dict[str, dict[str, Tensor]] = {}
        for point in self.points:
            parts = {"x": recorded.values[point.place].to(dtype)}
            reconstructed = point if self.target is None else self.target
            if reconstructed.place in recorded.gradients:
                parts["gradient"] = recorded.gradients[reconstructed.place].to(dtype)
            if self.target is not None:
                parts["target"] = recorded.values[self.target.place].to(dtype)
            stored[point.place] = parts
        return stored

    def _finite(self, stored: Mapping[str, Mapping[str, Tensor]], shape: tuple[int, int]) -> Tensor:
        finite = torch.ones(shape, dtype=torch.bool)
        for of_place in stored.values():
            for value in of_place.values():
                finite &= torch.isfinite(value).all(-1)
        return finite

    def _check_gradients(self, recorded: Recorded, keep: Tensor) -> None:
        for place, gradient in recorded.gradients.items():
            if bool(keep.any()) and not bool((gradient != 0).any(-1)[keep].any()):
                raise InvalidValue(
                    f"all gradients at {place} are zero in a batch: the loss does not depend on "
                    "these activations, or it is exactly fitted"
                )

    def _complaint(
        self, bad: Tensor, inputs: Inputs, first: int, stored: Mapping[str, Mapping[str, Tensor]]
    ) -> str:
        names = [
            f"{_PLURAL[part]} at {place}"
            for place, of_place in stored.items()
            for part, value in of_place.items()
            if bool((~torch.isfinite(value).all(-1) & bad).any())
        ]
        where = bad.any(1).nonzero().flatten().tolist()
        shown = "; ".join(self._context(inputs, bad, row, first) for row in where[:_SHOWN])
        more = f"; and {len(where) - _SHOWN} contexts more" if len(where) > _SHOWN else ""
        half = self.settings.dtype is torch.float16
        return (
            f"{int(bad.sum())} of {bad.numel()} rows in a batch have NaN or infinite "
            f"{', '.join(names)}: {shown}{more}. "
            + ("float16 holds at most 65,504: take dtype=torch.bfloat16. " if half else "")
            + "Find where the model makes them, or leave them out and have them counted with "
            "skip_non_finite=True."
        )

    def _context(self, inputs: Inputs, bad: Tensor, row: int, first: int) -> str:
        text = f" (in text {inputs.texts[row]})" if inputs.texts else ""
        places = bad[row].nonzero().flatten().tolist()
        said = f"context {first + row}{text}, positions {places[:5]}"
        tokenizer: Any = self.source.tokenizer
        if tokenizer is not None and inputs.tokens is not None:
            said += f", {tokenizer.decode(inputs.tokens[row].tolist())[:60]!r}"
        return said


def _first(keep: Tensor, most: int) -> tuple[Tensor, int]:
    """Returns the mask with only its first `most` rows, and the contexts that have them."""
    flat = keep.flatten().clone()
    flat[flat.nonzero().flatten()[most:]] = False
    kept = flat.view_as(keep)
    return kept, int(kept.any(1).nonzero().max()) + 1
