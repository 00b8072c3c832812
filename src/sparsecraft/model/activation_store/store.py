"""A store of activations: harvested from a model, opened from disk, or made of tensors."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.activation_store.batch import ActivationBatch
from sparsecraft.model.activation_store.contents import (
    Contents,
    HarvestReport,
    contents_of_tensors,
)
from sparsecraft.model.activation_store.harvest import harvest
from sparsecraft.model.activation_store.reader import Reader
from sparsecraft.model.activation_store.selection import Selection
from sparsecraft.model.activation_store.settings import Loss, Progress
from sparsecraft.model.activation_store.shards import open_contents, verify
from sparsecraft.model.activation_store.shuffle import Permutation
from sparsecraft.model.activation_store.table import check_index
from sparsecraft.model.digests import digest

ROWS_FOR_SCALE = 65536


class ActivationStore:
    """Activations of one place in a model, row by row, that may be larger than memory.

    Constructing it runs the model over the text, no more of it than the place needs. With a `path`
    what is done stays done: the same call goes on where an earlier one stopped, and only reads the
    text again, to see that it is the same, where all is complete.

    Args:
        model: A Hugging Face model or any module; it is left as it was.
        at: A hook point, see `sparsecraft.model.hook_points`.
        texts: A list of texts, any iterable of them, or the path of a text file.
        tokens: In place of texts: int64 (contexts, tokens) token ids.
        batches: In place of texts: what the model is called with, mappings or tensors.
        tokenizer: By default the one of the model's `name_or_path`.
        context: Tokens of texts that the model reads in a row, 128 by default; tokens and batches
            are read as they are.
        skip_special: Whether special tokens are left out; or the ids of those to leave out.
            Padding is where it is known: in batches by `attention_mask`, in tokens by a padding
            token that has no other office; else the report says so.
        skip_first: Positions left out at the start of each context.
        prepend_bos: Whether contexts of texts begin with BOS; None: as the tokenizer does itself.
        gradients: Whether the gradient of the model's loss is kept with each activation; with `to`
            that with respect to the target, on which a transcoder's directions act.
        loss: From the model's output and its batch to a scalar, summed over tokens; by default
            the cross-entropy of the next token, for causal language models.
        to: A second hook point, whose activations a transcoder shall reconstruct.
        rows: At most so many; by default all that the text gives.
        path: A folder for the files; by default the rows are held in memory.
        dtype: In which they are kept: float32, bfloat16 or float16.
        batch_size: Contexts in a forward pass.
        skip_non_finite: Whether rows with NaN or infinite values are left out and counted; by
            default they are an error.
        shard_bytes: Files are divided so that the parts of a shard together take no more.
        progress: Told (stage, done, total) rows; total 0 where it is not known.

    Raises:
        UnknownName: If there is no such hook point; the message has the closest names.
        InvalidValue: If the text does not fill a context, or settings contradict each other.
        NonFinite: For NaN or infinite activations or gradients, saying which texts.
        StoreError: If the path holds other activations, or the disk is too small.

    Example:
        >>> store = ActivationStore.from_tensor(torch.randn(100, 8))
        >>> train, held_out = store.split(held_out=0.1, seed=0)
        >>> next(train.reader(batch=32, seed=0)).x.shape
        torch.Size([32, 8])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        at: str,
        texts: Iterable[str] | str | Path | None = None,
        tokens: Tensor | None = None,
        batches: Iterable[Any] | None = None,
        tokenizer: Any = None,
        context: int | None = None,
        skip_special: bool | Collection[int] = True,
        skip_first: int = 0,
        prepend_bos: bool | None = None,
        gradients: bool = False,
        loss: Loss | None = None,
        to: str | None = None,
        rows: int | None = None,
        path: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        batch_size: int = 32,
        skip_non_finite: bool = False,
        shard_bytes: int = 2**28,
        progress: Progress | None = None,
    ) -> None:
        # Every argument but these four is a field of HarvestSettings, or the path.
        options = {k: v for k, v in locals().items() if k not in ("self", "model", "at", "to")}
        (contents,) = harvest(model, [at], to=to, **options).values()
        self._fill(contents)

    @classmethod
    def harvest_many(
        cls, model: nn.Module, *, at: Sequence[str], path: str | Path | None = None, **options: Any
    ) -> dict[str, ActivationStore]:
        """Returns the stores of several hook points, made in one pass over the text.

        Args:
            model: As for a single one, and so the options.
            at: Hook points.
            path: A folder that gets one folder for each of them.
            options: As of `ActivationStore`.
        """
        made = harvest(model, list(at), path=path, one_folder_each=True, **options)
        return {name: cls._of(contents) for name, contents in made.items()}

    @classmethod
    def from_tensor(
        cls, x: Tensor, gradient: Tensor | None = None, target: Tensor | None = None
    ) -> ActivationStore:
        """Returns a store of tensors in memory, which are not copied.

        Args:
            x: (..., d_in).
            gradient: Of the model's loss with respect to what is reconstructed: like the target
                if there is one, else like x.
            target: (..., d_out), for a transcoder.

        Raises:
            InvalidValue, NonFinite: If shapes or types do not fit, or values are not finite.
        """
        return cls._of(contents_of_tensors(x, gradient, target))

    @classmethod
    def open(cls, path: str | Path) -> ActivationStore:
        """Returns a store that was harvested into this folder.

        Raises:
            StoreError: If there is none, it is not complete, or a file is missing or cut short.
        """
        return cls._of(open_contents(Path(path)))

    def __len__(self) -> int:
        return len(self._selection)

    def __repr__(self) -> str:
        where = f" at {self.at}" if self.at else ""
        return f"ActivationStore({len(self):,} rows of {self.d_in}{where})"

    @property
    def d_in(self) -> int:
        """Entries of an activation."""
        return self._table.width("x")

    @property
    def d_out(self) -> int:
        """Entries of what is to be reconstructed: the target, else the activation itself."""
        return self._table.width("target") or self.d_in

    @property
    def at(self) -> str | None:
        """The hook point as it was named, or None for tensors."""
        return self._contents.at

    @property
    def info(self) -> dict[str, Any]:
        """Where the activations come from; what an autoencoder keeps as its `info`."""
        return dict(self._contents.info)

    @property
    def report(self) -> HarvestReport | None:
        """How the harvest of the whole store went, or None for tensors."""
        return self._contents.report

    @property
    def path(self) -> Path | None:
        """The folder of the files, or None in memory."""
        return self._contents.path

    @property
    def has_gradient(self) -> bool:
        """Whether each activation comes with the gradient of the model's loss."""
        return self._table.width("gradient") > 0

    @property
    def has_target(self) -> bool:
        """Whether each activation comes with another one, to be reconstructed in its place."""
        return self._table.width("target") > 0

    @property
    def tokens(self) -> Tensor | None:
        """int32 (contexts, context) token ids, -1 behind short contexts; None without a text."""
        return self._selection.tokens

    @property
    def contexts(self) -> int:
        """How many contexts there are; rows of a tensor count as one each."""
        return self._selection.count

    def place(self, index: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns context numbers and positions, int64 (n,), of rows (n,); None for tensors."""
        if self.at is None:
            return None
        index = check_index(index, len(self))
        positions = self._table.gather("positions", self._selection.in_table(index))
        return self._selection.context_of(index), positions.long()

    def rows(self, index: Tensor) -> ActivationBatch:
        """Returns the rows with these numbers (n,), in this order.

        Raises:
            InvalidValue: If a number is not below the length.
        """
        index = check_index(index, len(self))
        base = self._selection.in_table(index)
        gradient, target = (
            self._table.gather(part, base).float() if self._table.width(part) else None
            for part in ("gradient", "target")
        )
        return ActivationBatch(self._table.gather("x", base).float(), gradient, target, index)

    def batches(self, size: int = 8192) -> Iterator[ActivationBatch]:
        """Yields all rows once, in their order, `size` at a time."""
        for first in range(0, len(self), size):
            yield self.rows(torch.arange(first, min(first + size, len(self))))

    def sample(self, count: int, seed: int = 0) -> ActivationBatch:
        """Returns different rows chosen at random, sorted by number.

        Raises:
            InvalidValue: If there are fewer rows.
        """
        if not 1 <= count <= len(self):
            raise InvalidValue(f"count={count} is not allowed: the store has {len(self)} rows")
        return self.rows(Permutation(len(self), seed, "sample").of(torch.arange(count)).sort()[0])

    def split(
        self, held_out: float = 0.1, seed: int = 0
    ) -> tuple[ActivationStore, ActivationStore]:
        """Returns two stores over the same rows: what is left, and whole contexts held out.

        Args:
            held_out: Share of the contexts, more than 0 and less than 1.
            seed: Of the choice.

        Raises:
            InvalidValue: If one of the two would be empty.
        """
        first, second = self._selection.split(held_out, seed)
        return self._of(self._contents, first), self._of(self._contents, second)

    def reader(self, batch: int, seed: int = 0, rank: int = 0, world: int = 1) -> Reader:
        """Returns an endless iterator of random batches; `Reader` explains the arguments."""
        return Reader(self, batch, seed, rank, world)

    def scale(self) -> float:
        """Returns the number that makes the mean norm of activations sqrt(d_in).

        The mean is over all rows, or over 65,536 of them, always the same ones.

        Raises:
            InvalidValue: If all of them are zero.
        """
        x = self.sample(min(len(self), ROWS_FOR_SCALE)).x
        mean = float(x.norm(dim=1).double().mean())
        if mean == 0:
            raise InvalidValue(f"all {len(x)} activations looked at are zero: nothing to scale")
        return math.sqrt(self.d_in) / mean

    @property
    def digest(self) -> str:
        """A hash that tells stores apart: of model, place, settings, text, and the part taken."""
        whole, contexts = self._contents.digest, self._selection.contexts
        return whole if contexts is None else digest([(whole, contexts)])

    def verify(self) -> None:
        """Reads all files and compares them with the digests written with them.

        Raises:
            StoreError: Naming the first file that differs.
        """
        if self.path is not None:
            verify(self.path)

    @staticmethod
    def _of(contents: Contents, selection: Selection | None = None) -> ActivationStore:
        made = ActivationStore.__new__(ActivationStore)  # also where a subclass asks
        made._fill(contents, selection)
        return made

    def _fill(self, contents: Contents, selection: Selection | None = None) -> None:
        self._contents, self._table = contents, contents.table
        self._selection = Selection(contents.table) if selection is None else selection
