"""A Sparsifier inside the Hugging Face Trainer: one callback, no other change."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsecraft.core import catalog
from sparsecraft.core.errors import CheckpointError, InvalidValue
from sparsecraft.core.kinds import InTraining, Method
from sparsecraft.model.checkpoints import CONFIG, TRAINING_SETTINGS
from sparsecraft.model.context import LossFunction
from sparsecraft.model.files import write_atomic
from sparsecraft.model.sparsifier import Sparsifier
from sparsecraft.model.targets import Select
from sparsecraft.model.training_report import TrainingReport
from sparsecraft.model.wrappers import unwrapped

if TYPE_CHECKING:
    from transformers import TrainerCallback
else:
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        from sparsecraft.core.errors import MissingDependency

        raise MissingDependency("transformers", "hf", "SparsifierCallback") from error

STATE = "sparsecraft_sparsifier.pt"


class SparsifierCallback(TrainerCallback):
    """Makes the model of a Hugging Face Trainer sparse while it trains.

    The mask begins with the training, the clock follows the optimiser's steps, the method's loss
    is added to the model's own, checkpoints carry the sparsifier's state (a training resumed from
    one goes on bit by bit), and when the training ends the model is finished: exact zeros, saved
    by `trainer.save_model()` like any other.

    Args:
        method: As for `Sparsifier`.
        targets: As for `Sparsifier`.
        seed: As for `Sparsifier`.
        calibration: As for `Sparsifier`.
        loss_function: As for `Sparsifier`.
        teacher: As for `Sparsifier`; by default the model as the Trainer was given it.
        options: Settings of the method.

    Example:
        >>> callback = SparsifierCallback("static", sparsity=0.9)
        >>> callback.method.sparsity
        0.9
    """

    def __init__(
        self,
        method: str | Method,
        *,
        targets: Select = None,
        seed: int = 0,
        calibration: Sequence[Mapping[str, Any]] | None = None,
        loss_function: LossFunction | None = None,
        teacher: nn.Module | None = None,
        **options: Any,
    ) -> None:
        self.method = catalog.build(method, **options)
        self.settings = {
            "targets": targets,
            "seed": seed,
            "calibration": calibration,
            "loss_function": loss_function,
        }
        self.teacher = teacher
        self.sparsifier: Sparsifier | None = None
        self.report: TrainingReport | None = None
        self._added = False
        self._divisor = 1
        self._hook: Any = None

    def loss(self) -> Tensor:
        """Returns what the method adds, for a Trainer that forms its loss itself.

        Raises:
            InvalidValue: Outside a training.
        """
        if self.sparsifier is None:
            raise InvalidValue("there is no training yet: callback.loss() belongs in compute_loss")
        self._added = True
        return self.sparsifier.loss()

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keeps a copy of the model as it was given, where the method learns from one."""
        model = kwargs.get("model")
        learns = isinstance(self.method, InTraining) and "teacher" in self.method.captures
        if learns and self.teacher is None and model is not None:
            self.teacher = copy.deepcopy(unwrapped(model))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Makes the Sparsifier, attaches it, and takes up a checkpoint's state.

        Raises:
            InvalidValue: For `load_best_model_at_end`, which would bring raw weights back.
            CheckpointError: If the checkpoint was written without this callback.
        """
        if args.load_best_model_at_end:
            raise InvalidValue(
                "load_best_model_at_end=True would put raw weights of an earlier step under the "
                "final masks: leave it out, and evaluate what the training ends with"
            )
        model = unwrapped(kwargs["model"])
        begun = state.global_step > 0
        raw = {n: t.detach().clone() for n, t in model.state_dict().items()} if begun else {}
        self._divisor = args.gradient_accumulation_steps
        self.sparsifier = Sparsifier(
            model,
            self.method,
            total_steps=state.max_steps,
            teacher=self.teacher,
            **self.settings,  # type: ignore[arg-type]
        )
        if begun:
            self.sparsifier.load_state_dict(_read(_folder(args, state)))
            model.load_state_dict(raw)
        self.sparsifier.attach(kwargs["optimizer"])
        if type(self.method).loss is not InTraining.loss:  # type: ignore[attr-defined]
            self._hook = model.register_forward_hook(self._add_loss, with_kwargs=True)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Makes sure that the method's loss took part.

        Raises:
            InvalidValue: If the model's output held no loss to which it could be added.
        """
        if self._hook is not None and not self._added:
            raise InvalidValue(
                f"{self.method.info.name} adds to the loss, but the model returned none: the "
                "Trainer formed it outside (label smoothing, compute_loss_func). Add "
                "callback.loss() in your own compute_loss, or leave that out."
            )
        self._added = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the sparsifier's state beside the checkpoint, which it marks as raw."""
        if self.sparsifier is None or not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        stream = io.BytesIO()
        torch.save(self.sparsifier.state_dict(), stream)
        write_atomic(folder / CONFIG, json.dumps(TRAINING_SETTINGS, indent=2) + "\n")
        write_atomic(folder / STATE, stream.getvalue())

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Finishes the model; what was achieved is in `report`."""
        if self._hook is not None:
            self._hook.remove()
        if self.sparsifier is not None:
            self.report = self.sparsifier.finalize()

    def _add_loss(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if not model.training or self.sparsifier is None:
            return None
        loss = output["loss"] if isinstance(output, Mapping) and "loss" in output else None
        if loss is None and isinstance(output, tuple) and output[0].dim() == 0:
            loss = output[0]
        if loss is None:
            return None
        self._added = True
        # The Trainer divides by the accumulated batches only where the model did not.
        divisor = self._divisor if kwargs.get("num_items_in_batch") is not None else 1
        total = loss + self.sparsifier.loss() / divisor
        if isinstance(output, tuple):
            return (total, *output[1:])
        output["loss"] = total
        return output


def _folder(args: Any, state: Any) -> Path:
    given = args.resume_from_checkpoint
    if isinstance(given, str) and Path(given).is_dir():
        return Path(given)
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _read(folder: Path) -> dict[str, Tensor]:
    path = folder / STATE
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no {STATE}: it was written without a SparsifierCallback, or the save "
            "was cut off. Resume from an earlier checkpoint."
        )
    return torch.load(path, map_location="cpu", weights_only=True)
