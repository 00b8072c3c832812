"""How every module of a model is called in one forward pass, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sparsecraft.core.errors import InvalidValue

Batch = Mapping[str, Any]


@dataclass(frozen=True)
class Call:
    """How a module was called, and what it gave."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Any

    @property
    def input(self) -> Any:
        """The first argument, by position or by name."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()), None)

    @property
    def first(self) -> Any:
        """The output, or the first of several."""
        return self.output[0] if isinstance(self.output, tuple) else self.output


Calls = Mapping[str, Call]


def record_calls(model: nn.Module, batch: Batch) -> dict[str, Call]:
    """Returns how each module was called, the last time, in the order in which they finished.

    Args:
        model: Any module; what it returns is held in memory.
        batch: Keyword arguments of its forward.

    Raises:
        InvalidValue: If it does not run on them.
    """
    calls: dict[str, Call] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            calls[name] = Call(args, kwargs, output)

        return hook

    handles = [
        module.register_forward_hook(note(name), with_kwargs=True)
        for name, module in model.named_modules()
    ]
    cached = getattr(getattr(model, "config", None), "use_cache", False)
    try:
        model(**batch, **({"use_cache": False} if cached else {}))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise InvalidValue(
            f"{type(model).__name__} does not run on the example input: {error}. "
            "Give one that it accepts (example_input=...)."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return calls


def same_numbers(one: Any, other: Any) -> bool:
    """Returns whether two tensors are the same numbers in memory, perhaps in another shape."""
    both = isinstance(one, Tensor) and isinstance(other, Tensor)
    return both and one.data_ptr() == other.data_ptr() and one.numel() == other.numel()
