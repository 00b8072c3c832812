"""A model whose parameters have shapes but no memory, and get it for as long as they are needed.

Buffers (rotary frequencies, causal masks) are computed as in any model; only parameters are left
out, by making every `torch.empty` inside the model's constructor one without memory, and every
parameter when it is registered.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sparsecraft.core.errors import CheckpointError
from sparsecraft.model.checkpoints import build_model, model_class
from sparsecraft.model.streaming.layout import IN_MEMORY, layout_of
from sparsecraft.model.streaming.shards import Shards
from sparsecraft.model.targets import ties

_FILLING = ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "zero_", "zeros_", "ones_")


class Skeleton:
    """The model of a directory, without memory for its parameters.

    Args:
        shards: The files.
        kind: Which head the model has; see `load_pretrained`.
        dtype: What is computed in; None for the type that the config names, float32 without one.

    Raises:
        CheckpointError: If the files and the config do not fit.
    """

    def __init__(
        self, shards: Shards, *, kind: str = "auto", dtype: torch.dtype | None = None
    ) -> None:
        self.shards = shards
        config = _config(shards.directory)
        named = getattr(config, "dtype", None)
        self.dtype = dtype or (named if isinstance(named, torch.dtype) else torch.float32)
        with without_memory(self.dtype):
            self.model = build_model(config, model_class(shards.directory, kind)).eval()
        self.layout = layout_of(self.model, shards)
        self._float32 = _kept_in_float32(self.model, self.dtype)
        self._empty: dict[str, nn.Parameter] = {}
        # A tied parameter has one storage in the files and may be asked for by any of its names.
        tied = ties(self.model)
        self._first = {other: first for first, others in tied.items() for other in others}
        self._read_buffers()

    def type_of(self, name: str) -> torch.dtype:
        """Returns the type that a parameter is computed in."""
        keeps = self._float32 is not None and self._float32.search(name)
        return torch.float32 if keeps else self.dtype

    def nbytes(self, names: Iterable[str]) -> int:
        """Returns the bytes of these parameters when they have memory."""
        parameters = dict(self.model.named_parameters())
        return sum(
            parameters[name].numel() * self.type_of(name).itemsize
            for name in names
            if name in parameters
        )

    @contextmanager
    def filled(self, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
        """Gives these parameters memory and their stored values, until the block ends."""
        wanted = list(names)
        try:
            yield {name: self._fill(name) for name in wanted}
        finally:
            for name in wanted:
                self._release(name)

    @contextmanager
    def filled_on_use(self, prefixes: tuple[str, ...]) -> Iterator[None]:
        """Fills the parameters of a module when it first runs; all are let go in the end.

        Args:
            prefixes: Of modules that are left alone.
        """
        with ExitStack() as stack:
            used: list[str] = []
            for name, module in self.model.named_modules():
                own = [short for short, _ in module.named_parameters(recurse=False)]
                if own and not f"{name}.".startswith(prefixes):
                    full = [f"{name}.{short}" if name else short for short in own]
                    handle = module.register_forward_pre_hook(self._filling(full, used))
                    stack.callback(handle.remove)
            try:
                yield
            finally:
                for name in used:
                    self._release(name)

    def _filling(self, names: list[str], used: list[str]) -> Any:
        def hook(module: nn.Module, args: Any) -> None:
            for name in names:
                if name not in self._empty:
                    self._fill(name)
                    used.append(name)

        return hook

    def _fill(self, name: str) -> Tensor:
        owner, short = self._owner(name)
        empty = owner._parameters[short]
        pieces = self.layout.get(self._first.get(name, name))
        if empty is None or pieces is None:
            raise CheckpointError(
                f"{self.shards.directory} has no weights for {name}, or only under a name that is "
                f"not understood. {IN_MEMORY}"
            )
        whole = torch.empty(empty.shape, dtype=self.type_of(name))
        for piece in pieces:
            self.shards.read(piece.key, piece.view(whole))
        self._empty[name] = empty
        owner._parameters[short] = nn.Parameter(whole, requires_grad=False)
        return whole

    def _release(self, name: str) -> None:
        if name in self._empty:
            owner, short = self._owner(name)
            owner._parameters[short] = self._empty.pop(name)

    def _owner(self, name: str) -> tuple[nn.Module, str]:
        prefix, _, short = name.rpartition(".")
        return self.model.get_submodule(prefix), short

    def _read_buffers(self) -> None:
        for name, buffer in self.model.named_buffers():
            if name in self.shards.entries and not buffer.is_meta:
                self.shards.read(name, buffer)
            elif buffer.is_meta:
                raise CheckpointError(
                    f"the buffer {name} of {type(self.model).__name__} is neither computed when "
                    f"the model is built nor in its files. {IN_MEMORY}"
                )


@contextmanager
def without_memory(dtype: torch.dtype) -> Iterator[None]:
    """Makes parameters that are created inside the block ones without memory, of this type."""
    register = nn.Module.register_parameter
    before = torch.get_default_dtype()

    def register_empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    torch.set_default_dtype(dtype)
    nn.Module.register_parameter = register_empty  # type: ignore[assignment, method-assign]
    try:
        with torch.random.fork_rng(devices=[]), _EmptyOnMeta():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
        torch.set_default_dtype(before)


class _EmptyOnMeta(TorchFunctionMode):
    """Gives `torch.empty` no memory; what has values to be computed keeps its own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        filled = args[0] if args else options.get("tensor")
        if isinstance(filled, Tensor) and filled.is_meta and func.__name__ in _FILLING:
            return filled  # nothing to fill, and its shape takes long to be checked
        if func is torch.empty:
            options["device"] = "meta"
        return func(*args, **options)


def _config(directory: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(str(directory))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"could not read the config of {directory}: {error}") from error


def _kept_in_float32(model: nn.Module, dtype: torch.dtype) -> re.Pattern[str] | None:
    """Returns what matches the parameters that stay float32 in a model of this type, or None."""
    names: set[str] = set()
    if dtype == torch.float16:
        names |= set(getattr(model, "_keep_in_fp32_modules", None) or ())
    if dtype in (torch.float16, torch.bfloat16):
        names |= set(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
    if not names:
        return None
    return re.compile("|".join(rf"(?:^|\.)(?:{name})(?:\.|$)" for name in sorted(names)))
