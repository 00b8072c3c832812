"""What a model-wide method sees: losses and flows of a copy, never the model itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparsecraft.core.errors import MissingStatistic
from sparsecraft.core.patterns import from_matrix
from sparsecraft.core.seeds import generator
from sparsecraft.model.targets import Targets

LossFunction = Callable[[Any, Mapping[str, Any], float], Tensor]


class CopyContext:
    """A `ModelContext` on a copy that is made when it is first needed.

    BatchNorm uses batch statistics where the model is in training mode, its running ones where it
    is not; dropout is always off.

    Args:
        model: The user's model; it is only read.
        targets: Its targets.
        batches: Calibration batches, keyword arguments of the forward, with labels where the loss
            needs them.
        seed: The run's seed.
        loss_function: (output, batch, temperature) -> scalar; by default `default_loss`.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: Targets,
        batches: Sequence[Mapping[str, Any]] | None,
        seed: int,
        loss_function: LossFunction | None = None,
    ) -> None:
        self.model = model
        self.targets = targets
        self.seed = seed
        self.loss_function = loss_function or default_loss
        self._batches = list(batches or ())
        self._copy: nn.Module | None = None

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Target name to (out, in, *kernel)."""
        return self.targets.shapes

    def generator(self, *labels: object) -> torch.Generator:
        """Returns the random stream of these labels."""
        return generator(self.seed, *labels)

    def batches(self) -> Sequence[Mapping[str, Any]]:
        """Returns the calibration batches.

        Raises:
            MissingStatistic: If there are none.
        """
        if not self._batches:
            raise MissingStatistic(
                "this method needs batches with labels to take gradients of a loss, and none were "
                "given (calibration=[...], --calibration text.txt)"
            )
        return self._batches

    def loss(
        self, weights: Mapping[str, Tensor], batch: Mapping[str, Any], *, temperature: float = 1.0
    ) -> Tensor:
        """Returns the loss with these weights, differentiable in them."""
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        output = self._call(weights, inputs)
        return self.loss_function(output, batch, temperature)

    def flow(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Returns the summed output in float64 for an input of ones, everything made positive.

        Normalisations are bypassed (identity), so that the network is the linear one whose flow
        SynFlow conserves.
        """
        clone: Any = copy.deepcopy(self.model).double().eval()
        if hasattr(clone, "set_experts_implementation"):
            clone.set_experts_implementation("eager")  # the grouped kernel has no float64
        with torch.no_grad():
            for parameter in clone.parameters():
                parameter.abs_()
        with _without_norms(clone):
            parameters = self._assemble(clone, weights)
            return _tensor(functional_call(clone, parameters, (), self._ones(clone))).sum()

    def _call(self, weights: Mapping[str, Tensor], inputs: Mapping[str, Any]) -> Any:
        if self._copy is None:
            self._copy = copy.deepcopy(self.model)
            for module in self._copy.modules():
                module.training = module.training and isinstance(
                    module, nn.modules.batchnorm._BatchNorm
                )
        parameters = self._assemble(self._copy, weights)
        # The fused attention kernels have no second derivative, which GraSP takes.
        with sdpa_kernel(SDPBackend.MATH):
            return functional_call(self._copy, parameters, (), dict(inputs))

    def _assemble(self, model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns parameters by name with the matrices put in, differentiably."""
        originals = dict(model.named_parameters())
        made: dict[str, Tensor] = {}
        for target in self.targets:
            if target.name not in weights:
                continue
            original = originals[target.parameter]
            matrix = from_matrix(weights[target.name].to(original.dtype), target.shape)
            if target.index is None and target.rows is None:
                made[target.parameter] = (
                    matrix.transpose(0, 1) if target.input_axis == 0 else matrix
                )
                continue
            whole = made.get(target.parameter, original.detach())
            made[target.parameter] = _put(target, whole, matrix)
        return made

    def _ones(self, model: nn.Module) -> dict[str, Tensor]:
        if self._batches:
            first = {k: v for k, v in self._batches[0].items() if isinstance(v, Tensor)}
        else:
            first = {}
        config = getattr(model, "config", None)
        if "input_ids" in first or (not first and hasattr(config, "vocab_size")):
            width = config.hidden_size  # type: ignore[union-attr]
            return {"inputs_embeds": torch.ones(1, 4, width, dtype=torch.float64)}
        for name, value in first.items():
            if value.is_floating_point():
                return {name: torch.ones_like(value[:1], dtype=torch.float64)}
        raise MissingStatistic(
            "synflow needs one batch to know the shape of the input (its values do not matter): "
            "give calibration=[batch]"
        )


def default_loss(output: Any, batch: Mapping[str, Any], temperature: float = 1.0) -> Tensor:
    """Returns the cross-entropy of the output's logits, shifted by one token for causal models.

    Args:
        output: A tensor of logits (..., classes), or an object with `logits`.
        batch: With `labels`; a language model without labels predicts its own `input_ids`.
        temperature: Divides the logits.

    Raises:
        MissingStatistic: If there are neither labels nor logits.
    """
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    labels = batch.get("labels")
    if logits is None or (labels is None and (logits.dim() != 3 or "input_ids" not in batch)):
        raise MissingStatistic(
            "no loss can be formed: the model gives no logits, or the batches have no labels. "
            "Give loss_function=(output, batch, temperature) -> scalar."
        )
    labels = batch["input_ids"] if labels is None else labels
    if logits.dim() == 3 and labels.dim() == 2:
        logits, labels = logits[:, :-1], labels[:, 1:]
    return F.cross_entropy(logits.flatten(0, -2) / temperature, labels.flatten())


def _put(target: Any, whole: Tensor, part: Tensor) -> Tensor:
    result = whole.clone()
    target.view(result).copy_(part)
    return result


def _tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "last_hidden_state"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    return output[0]


@contextmanager
def _without_norms(model: nn.Module) -> Iterator[None]:
    """Makes every normalisation the identity for the time of the block."""
    norms = [m for m in model.modules() if "Norm" in type(m).__name__]
    handles = [m.register_forward_hook(lambda _m, args, _out: args[0]) for m in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
