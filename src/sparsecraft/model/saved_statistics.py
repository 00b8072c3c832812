"""Statistics of layers' inputs kept in a folder, so that other settings run without a new pass.

One safetensors file for each stage is written while the model is being pruned, and at the end a
list of them, `statistics.json`, that says of which model and calibration they are. A folder without
the list is incomplete and is gathered anew. The statistics of a block are those of its input behind
the blocks that were pruned before it, with the settings of that time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sparsecraft.core import catalog
from sparsecraft.core.errors import CheckpointError, InvalidValue, MissingStatistic
from sparsecraft.core.kinds import Layerwise
from sparsecraft.core.statistics import Statistic
from sparsecraft.model.calibration import Stage
from sparsecraft.model.digests import digest, digest_of_batches
from sparsecraft.model.files import write_atomic
from sparsecraft.model.packed import safetensors_bytes
from sparsecraft.model.targets import Target

LIST = "statistics.json"
_VERSION = 1


@dataclass(frozen=True)
class StatisticsFolder:
    """The statistics of one model and one calibration.

    Args:
        path: The folder.
        model: Digest of the dense model's parameters.
        calibration: Digest of the batches.
    """

    path: Path
    model: str
    calibration: str

    @classmethod
    def of(
        cls, path: str | Path, model: nn.Module, batches: Sequence[Mapping[str, Any]]
    ) -> StatisticsFolder:
        """Returns the folder for this model, still dense, and these batches."""
        seen = [{k: v for k, v in batch.items() if k != "labels"} for batch in batches]
        return cls(Path(path), digest(model.named_parameters()), digest_of_batches(seen))

    @property
    def complete(self) -> bool:
        """Whether everything is there."""
        return (self.path / LIST).is_file()

    def keeping(self, walk: Iterable[Stage], method: Layerwise) -> Iterator[Stage]:
        """Yields the stages and writes what they hold.

        Raises:
            CheckpointError: If the folder holds something else, or cannot be written.
        """
        foreign = [p.name for p in self.path.glob("*") if p.suffix != ".safetensors"]
        if self.path.exists() and (not self.path.is_dir() or foreign):
            raise CheckpointError(
                f"{self.path} is no folder of statistics; give one that does not exist yet"
            )
        listed: list[dict[str, Any]] = []
        for stage in walk:
            listed.append(self._write(len(listed), stage))
            yield stage
        about = {
            "version": _VERSION,
            "model": self.model,
            "calibration": self.calibration,
            "method": catalog.describe(method),
            "statistics": [kind.__name__ for kind in method.statistics],
            "stages": listed,
        }
        write_atomic(self.path / LIST, json.dumps(about, indent=1, default=str))

    def check(self, targets: Iterable[Target], wanted: Sequence[type[Statistic]]) -> None:
        """Raises unless the folder is of this model and calibration and has all that is wanted.

        Raises:
            InvalidValue: If model or calibration differ, or the folder is of a later version.
            MissingStatistic: If a statistic or a target is not there.
        """
        anew = "Give another folder, or remove this one, to gather them anew."
        if self._about["version"] != _VERSION:
            raise InvalidValue(f"{self.path} is of version {self._about['version']}. {anew}")
        for what in ("model", "calibration"):
            if self._about[what] != getattr(self, what):
                raise InvalidValue(f"the statistics in {self.path} are of another {what}. {anew}")
        missing = [k.__name__ for k in wanted if k.__name__ not in self._about["statistics"]]
        if missing:
            raise MissingStatistic(
                f"{self.path} holds {', '.join(self._about['statistics'])} of the inputs, but "
                f"{', '.join(missing)} is needed. {anew}"
            )
        known = {name for stage in self._about["stages"] for name in stage["targets"]}
        lacking = [target.name for target in targets if target.name not in known]
        if lacking:
            raise MissingStatistic(
                f"{self.path} has no statistics of {len(lacking)} of the targets, among them "
                f"{lacking[0]}. {anew}"
            )

    def read(self, targets: Iterable[Target], wanted: Sequence[type[Statistic]]) -> Iterator[Stage]:
        """Yields the stages of these targets with their statistics, one file at a time."""
        by_name = {target.name: target for target in targets}
        for stage in self._about["stages"]:
            mine = tuple(by_name[name] for name in stage["targets"] if name in by_name)
            if mine:
                tensors = _tensors(self.path / stage["file"])
                values = {
                    target.name: {
                        kind: tensors[f"{stage['values'][target.name]}/{kind.__name__}"]
                        for kind in wanted
                    }
                    for target in mine
                    if target.name in stage["values"]
                }
                yield Stage(stage["name"], mine, values, tuple(stage["unseen"]))

    def notes(self, method: Layerwise) -> list[str]:
        """Returns what the report has to say of statistics that were not gathered for it."""
        then = self._about["method"]
        if json.loads(json.dumps(catalog.describe(method), default=str)) == then:
            return [f"statistics taken from {self.path}; no data passed the model"]
        settings = ", ".join(f"{k}={then[k]}" for k in ("sparsity", "pattern"))
        return [
            f"statistics taken from {self.path}: inputs as they were while pruning with "
            f"{then['method']} ({settings}), not behind the blocks pruned now"
        ]

    @cached_property
    def _about(self) -> dict[str, Any]:
        try:
            about: dict[str, Any] = json.loads((self.path / LIST).read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path / LIST} cannot be read: {error}") from error
        return about

    def _write(self, number: int, stage: Stage) -> dict[str, Any]:
        """Writes a stage and returns its entry of the list."""
        firsts: dict[int, str] = {}
        sharing: dict[str, str] = {}
        tensors: dict[str, Tensor] = {}
        for name, values in stage.values.items():
            # Layers that read one input share one set of values; it is written once.
            first = firsts.setdefault(id(values), name)
            sharing[name] = first
            if first == name:
                tensors |= {f"{name}/{kind.__name__}": v.cpu() for kind, v in values.items()}
        file = f"{number:04}.safetensors"
        write_atomic(self.path / file, safetensors_bytes(tensors, {"format": "pt"}))
        return {
            "name": stage.name,
            "file": file,
            "targets": [target.name for target in stage.targets],
            "unseen": list(stage.unseen),
            "values": sharing,
        }


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
