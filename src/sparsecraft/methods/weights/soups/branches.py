"""Branches: several trainings of one pruned model, side by side, each done once."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import CheckpointError, InvalidValue, MissingDependency
from sparsecraft.core.kinds import Train
from sparsecraft.core.mask import Mask
from sparsecraft.methods.weights.soups.outcome import Settings
from sparsecraft.model.files import write_atomic
from sparsecraft.model.packed import safetensors_bytes


@dataclass(frozen=True)
class Branch:
    """One training to make.

    Args:
        name: What `train` is told, for example "phase 1, candidate 2".
        settings: Further keywords of `train`, in plain values.
    """

    name: str
    settings: Settings


@dataclass(frozen=True, kw_only=True)
class Branches:
    """Runs branches and keeps what they left.

    Args:
        train: The caller's training; it is given the settings of a branch as keywords.
        directory: Where finished branches are kept, one file each. A file bears the hash of what
            the branch began with and of its settings, so that a changed start is trained anew; a
            changed `train` is not seen: give it a directory of its own.
        jobs: How many trainings run at once, each in a process of its own; `train` must then be a
            function that another process can be given.
    """

    train: Train
    directory: Path | None = None
    jobs: int = 1

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise InvalidValue(f"jobs={self.jobs} is not allowed: give at least 1")

    def states(
        self, model: nn.Module, mask: Mask, branches: Sequence[Branch]
    ) -> list[dict[str, Tensor]]:
        """Returns the state dict that each branch leaves; the model stays as it is.

        Args:
            model: What every branch starts from, the mask being applied.
            mask: What the branches hold at zero.
            branches: Each with a name of its own.

        Raises:
            InvalidValue: If `train` does not take the settings, or lets pruned weights revive.
            MissingDependency: If several jobs are asked and joblib is not installed.
        """
        self._check_keywords(branches)
        paths = [self._path(model, mask, branch) for branch in branches]
        waiting = [
            (self.train, model, mask, branch, path)
            for branch, path in zip(branches, paths, strict=True)
            if path is None or not path.exists()
        ]
        trained = dict(zip((w[3].name for w in waiting), self._finish(waiting), strict=True))
        return [
            trained[branch.name] if path is None else _read(path)
            for branch, path in zip(branches, paths, strict=True)
        ]

    def _finish(self, waiting: Sequence[tuple[Any, ...]]) -> Iterable[dict[str, Tensor]]:
        if self.jobs == 1 or len(waiting) < 2:
            return [_train(*each) for each in waiting]
        try:
            import joblib
        except ImportError as error:
            raise MissingDependency(
                "joblib", "lab", f"Training {self.jobs} branches at once"
            ) from error
        return joblib.Parallel(n_jobs=self.jobs)(joblib.delayed(_train)(*each) for each in waiting)

    def _path(self, model: nn.Module, mask: Mask, branch: Branch) -> Path | None:
        if self.directory is None:
            return None
        digest = hashlib.blake2b(
            json.dumps([branch.name, dict(branch.settings)], sort_keys=True).encode(),
            digest_size=8,
        )
        for tensors in (model.state_dict(), mask):
            for name, tensor in tensors.items():
                digest.update(name.encode() + _bytes(tensor))
        name = branch.name.replace(", ", "-").replace(" ", "_")
        return Path(self.directory) / f"{name}-{digest.hexdigest()}.safetensors"

    def _check_keywords(self, branches: Sequence[Branch]) -> None:
        try:
            parameters = inspect.signature(self.train).parameters.values()
        except (TypeError, ValueError):  # a callable without a signature tells when it is called
            return
        if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
            return
        wanted = {name: None for branch in branches for name in branch.settings}
        known = {parameter.name for parameter in parameters}
        missing = [name for name in wanted if name not in known]
        if missing:
            raise InvalidValue(
                f"train does not take the keywords {missing}, by which its branches are told "
                f"apart. Write it as train(model, mask=None, *, branch, {', '.join(wanted)}), or "
                "let it take **settings."
            )


def _train(
    train: Train, model: nn.Module, mask: Mask, branch: Branch, path: Path | None
) -> dict[str, Tensor]:
    """Trains a copy; returns its state dict, and keeps it where a path is given."""
    trained = copy.deepcopy(model)
    mask.apply_(dict(trained.named_parameters()))
    train(trained, mask, branch=branch.name, **branch.settings)
    try:
        mask.verify(dict(trained.named_parameters()))
    except InvalidValue as error:
        raise InvalidValue(
            f"train did not hold the mask in {branch.name!r}: {error} sparsecraft's hold_mask does."
        ) from error
    state = {key: value.detach().clone() for key, value in trained.state_dict().items()}
    if path is not None:
        note = {"name": branch.name, "settings": dict(branch.settings)}
        metadata = {"format": "pt", "sparsecraft_branch": json.dumps(note)}
        contiguous = {key: value.contiguous() for key, value in state.items()}
        write_atomic(path, safetensors_bytes(contiguous, metadata))
    return state


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}. Remove it, and the branch is trained again."
        ) from error


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
