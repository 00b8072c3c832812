"""What a run remembers on disk, so that a killed one goes on where it was.

The work stands in a folder beside the one that is asked for: `model/` with the files that grow,
`journal.json`, and the hidden states that the next block reads. The journal is replaced in one
step after every block, once everything it speaks of is on the disk. What a killed run wrote behind
that is written again, with the same bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsecraft.core.errors import CheckpointError
from sparsecraft.model.files import write_atomic
from sparsecraft.model.streaming.raw_files import bytes_of, read_at, reserve, sync, write_at
from sparsecraft.model.streaming.shards import TYPE_NAMES, new_layout, read_header

_VERSION = 1
_NAME = "journal.json"


@dataclass
class Progress:
    """How far a run has come.

    Args:
        copied: Whether everything that is not pruned has been copied through.
        done: Stages finished.
        rows: What each target got, see `LayerReport.to_json`.
        notes: What did not go as asked.
        seconds: Wall time of all runs so far.
        hidden: File of the hidden states that the next stage reads, if there are any.
    """

    copied: bool = False
    done: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    hidden: str | None = None


class Journal:
    """The folder of work beside a directory that is being written.

    Args:
        out: The directory that is asked for.
    """

    def __init__(self, out: Path) -> None:
        self.folder = out.parent / f".{out.name}.part"
        self.model = self.folder / "model"
        self.progress = Progress()

    def begin(self, settings: Mapping[str, Any], *, resume: bool) -> bool:
        """Starts a run, or takes up the one that stands there, and returns whether it did that.

        Args:
            settings: Everything that decides the outcome.
            resume: Whether an earlier run is taken up; else it is thrown away.

        Raises:
            CheckpointError: If the earlier run had other settings, or its journal is damaged.
        """
        plain = json.loads(json.dumps(settings, default=str))
        found = self._found() if resume else None
        if found is not None and self.model.is_dir():
            self._compare(found["settings"], plain)
            self.progress = Progress(**found["progress"])
            self._settings = plain
            return self.progress.copied
        shutil.rmtree(self.folder, ignore_errors=True)
        self.model.mkdir(parents=True)
        self._settings = plain
        self.commit()
        return False

    def commit(self) -> None:
        """Makes what was done so far something that a killed run need not do again."""
        content = {
            "version": _VERSION,
            "settings": self._settings,
            "progress": vars(self.progress),
        }
        write_atomic(self.folder / _NAME, json.dumps(content))
        for file in self.folder.glob("hidden-*"):
            if file.name != self.progress.hidden:
                file.unlink()

    def save_hidden(self, hidden: Sequence[Tensor]) -> None:
        """Writes the hidden states for the next stage; `commit` makes them count."""
        self.progress.hidden = None
        if not hidden:
            return
        name = f"hidden-{self.progress.done}.safetensors"
        # One type, so that the tensors lie by name.
        tensors = {
            f"{i:06d}": (TYPE_NAMES[x.dtype], tuple(x.shape), x.numel() * x.element_size())
            for i, x in enumerate(hidden)
        }
        header, starts = new_layout(tensors, {"format": "pt"})
        path = self.folder / name
        reserve(path, len(header) + sum(size for _, _, size in tensors.values()))
        write_at(path, 0, header)
        for start, x in zip(starts.values(), hidden, strict=True):
            write_at(path, start, bytes_of(x.detach().cpu().contiguous()))
        sync(path)
        self.progress.hidden = name

    def load_hidden(self) -> list[Tensor]:
        """Returns the hidden states for the next stage, none where there are none."""
        if self.progress.hidden is None:
            return []
        path = self.folder / self.progress.hidden
        entries, _ = read_header(path)
        loaded = []
        for name in sorted(entries):
            entry = entries[name]
            x = torch.empty(entry.shape, dtype=entry.dtype)
            read_at(path, entry.start, bytes_of(x))
            loaded.append(x)
        return loaded

    def remove(self) -> None:
        """Takes the folder away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps a second process from working in the same folder meanwhile.

        Raises:
            CheckpointError: If one is at it already.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        lock = self.folder.with_suffix(".lock")
        try:
            import fcntl
        except ImportError:  # Windows, where an open file cannot be replaced anyway
            yield
            return
        with lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise CheckpointError(
                    f"another process is writing to {self.folder}. Wait for it, or choose "
                    "another folder."
                ) from error
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)

    def _found(self) -> dict[str, Any] | None:
        path = self.folder / _NAME
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text())
            version = found["version"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} is damaged: {error}. {_start_over(self.folder)}"
            ) from error
        if version != _VERSION:
            raise CheckpointError(
                f"{path} is of version {version}, not {_VERSION}. {_start_over(self.folder)}"
            )
        return found

    def _compare(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        differing = list(_differences(before, now))
        if differing:
            raise CheckpointError(
                f"{self.folder} holds a run that was interrupted, of other settings: "
                f"{'; '.join(differing[:5])}. Give those again to go on with it. "
                f"{_start_over(self.folder)}"
            )


def _start_over(folder: Path) -> str:
    return f"Or start over: --restart (resume=False), which removes {folder}."


def _differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*before, *now]):
            inner = f"{path}.{key}" if path else str(key)
            yield from _differences(before.get(key), now.get(key), inner)
    elif before != now:
        yield f"{path} was {_short(before)}, is {_short(now)}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
