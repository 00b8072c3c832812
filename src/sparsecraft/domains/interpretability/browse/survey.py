"""One pass over a store: where each latent is strongest, how often it fires, how strongly.

Of every context a latent gets at most one example for each pole, its strongest token there, so that
a page shows different texts instead of one text many times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sparsecraft.core import seeds
from sparsecraft.core.code import Code
from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.activation_store import ActivationStore
from sparsecraft.model.sae import SparseAutoencoder
from sparsecraft.model.sae.estimator import evaluating

CONTEXTS_AT_ONCE = 16
OCTAVES = (-8, 8)
PER_OCTAVE = 2
BINS = (OCTAVES[1] - OCTAVES[0]) * PER_OCTAVE

Progress = Callable[[str, int, int], None]


@dataclass
class Ranking:
    """The rows in which each latent ranks highest, best first.

    Args:
        keys: (d_sae, places), what is ranked; not positive where there is no row.
        rows: int64 (d_sae, places), row numbers of the store.
    """

    keys: Tensor
    rows: Tensor

    @classmethod
    def empty(cls, d_sae: int, places: int) -> Ranking:
        """Returns a ranking without rows."""
        return cls(torch.zeros(d_sae, places), torch.full((d_sae, places), -1))

    def merge(self, keys: Tensor, rows: Tensor) -> None:
        """Takes candidates (contexts, d_sae) into account."""
        keys, rows = torch.cat([self.keys, keys.T], 1), torch.cat([self.rows, rows.T], 1)
        self.keys, places = keys.topk(self.keys.shape[1], dim=1)
        self.rows = rows.gather(1, places)

    def of(self, latent: int) -> list[int]:
        """Returns the row numbers of a latent, best first."""
        return self.rows[latent][self.keys[latent] > 0].tolist()


@dataclass
class Survey:
    """What is known of every latent after the pass.

    Args:
        contexts: int64 (rows,), the context of each row.
        positions: int64 (rows,), its token there.
        fired: int64 (d_sae,), rows in which the latent is not zero.
        sums: (d_sae,), of the values; with `fired`, the mean where it fires.
        histogram: int64 (d_sae, 2, BINS), counts by sign (positive first) and half octave.
        positive: The strongest contexts.
        negative: The strongest contexts of negative values, for signed codes.
        sampled: Random contexts in which it fires.
    """

    contexts: Tensor
    positions: Tensor
    fired: Tensor
    sums: Tensor
    histogram: Tensor
    positive: Ranking
    negative: Ranking
    sampled: Ranking
    ranges: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many rows were seen."""
        return len(self.contexts)


def survey(
    sae: SparseAutoencoder,
    store: ActivationStore,
    *,
    most_rows: int = 200_000,
    examples: int = 8,
    samples: int = 4,
    seed: int = 0,
    progress: Progress | None = None,
) -> Survey:
    """Returns where each latent fires, from the first rows of the store.

    Args:
        sae: In evaluation mode for the time of the call.
        store: With tokens; rows lie in the order of their contexts.
        most_rows: At most so many, in whole contexts, at least one.
        examples: Strongest contexts kept for each pole.
        samples: Random contexts kept.
        seed: Of the random ones.
        progress: Told (stage, done, total).

    Raises:
        InvalidValue: If the store has no tokens.
    """
    places = store.place(torch.arange(len(store)))
    if places is None or store.tokens is None:
        raise InvalidValue(
            "a page needs the text of the activations, and this store has no tokens: make it "
            "with ActivationStore(model, at=..., texts=...)"
        )
    contexts, positions = places
    ranges = _ranges(contexts, most_rows)
    seen = max(last for _, last in ranges.values())
    found = Survey(
        contexts[:seen].clone(),
        positions[:seen].clone(),
        torch.zeros(sae.d_sae, dtype=torch.int64),
        torch.zeros(sae.d_sae, dtype=torch.float64),
        torch.zeros(sae.d_sae * 2 * BINS, dtype=torch.int64),
        Ranking.empty(sae.d_sae, examples),
        Ranking.empty(sae.d_sae, examples),
        Ranking.empty(sae.d_sae, samples),
        ranges,
    )
    stream = seeds.generator(seed, "browse")
    for first, last in _groups(ranges):
        _take(found, encoded(sae, store, first, last), first, stream)
        if progress is not None:
            progress("reading", last, seen)
    found.histogram = found.histogram.reshape(sae.d_sae, 2, BINS)
    return found


@torch.no_grad()
def encoded(sae: SparseAutoencoder, store: ActivationStore, first: int, last: int) -> Code:
    """Returns the codes of the rows first to last, as at inference, on the CPU.

    Where the store has gradients, they choose as in the training.
    """
    rows = store.rows(torch.arange(first, last))
    gradient = rows.gradient if sae.activation.needs_gradient else None
    with evaluating(sae):
        return sae.sparse_encode(rows.x, gradient=gradient).to("cpu")


def _ranges(contexts: Tensor, most_rows: int) -> dict[int, tuple[int, int]]:
    """Returns context -> (first row, row after the last), as long as they fit."""
    numbers, counts = contexts.unique_consecutive(return_counts=True)
    ends = counts.cumsum(0).tolist()
    ranges: dict[int, tuple[int, int]] = {}
    for number, count, end in zip(numbers.tolist(), counts.tolist(), ends, strict=True):
        if ranges and end > most_rows:
            break
        ranges[number] = (end - count, end)
    return ranges


def _groups(ranges: dict[int, tuple[int, int]]) -> Iterator[tuple[int, int]]:
    spans = list(ranges.values())
    for start in range(0, len(spans), CONTEXTS_AT_ONCE):
        group = spans[start : start + CONTEXTS_AT_ONCE]
        yield group[0][0], group[-1][1]


def _take(found: Survey, code: Code, first: int, stream: torch.Generator) -> None:
    """Adds the codes of some whole contexts."""
    rows = code.rows()
    contexts = found.contexts[first : first + len(code)]
    local = contexts.unique_consecutive(return_inverse=True)[1][rows]
    values, columns = code.values.float(), code.columns
    found.fired += code.fired()
    found.sums.index_add_(0, columns, values.double())
    bins = (columns * 2 + (values < 0)) * BINS + _bin(values)
    found.histogram += torch.bincount(bins[values != 0], minlength=found.histogram.numel())
    shape = (int(local.max()) + 1 if len(local) else 1, code.width)
    places, rows = local * code.width + columns, rows + first
    for ranking, keys in ((found.positive, values), (found.negative, -values)):
        ranking.merge(*_strongest(shape, places, keys, rows))
    strongest, where = _strongest(shape, places, values.abs(), rows)
    lots = torch.rand(shape, generator=stream) * (strongest > 0)
    found.sampled.merge(lots, where)


def _strongest(
    shape: tuple[int, int], places: Tensor, keys: Tensor, rows: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns (contexts, d_sae) largest keys, 0 if none is positive, and the rows they stand in."""
    best = torch.zeros(shape[0] * shape[1])
    best.scatter_reduce_(0, places, keys, "amax")
    hit = (keys == best[places]) & (keys > 0)
    where = torch.full((shape[0] * shape[1],), -1)
    where[places[hit]] = rows[hit]
    return best.reshape(shape), where.reshape(shape)


def _bin(values: Tensor) -> Tensor:
    """Returns the half octave of each magnitude, the outermost for what lies beyond."""
    octave = values.abs().clamp_min(2.0 ** OCTAVES[0]).log2() - OCTAVES[0]
    return (octave * PER_OCTAVE).long().clamp(0, BINS - 1)
