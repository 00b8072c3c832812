"""The run store: one folder for each run, written whole, so that a kill costs one run at most.

A store is a folder with `store.json` (format, versions and what the comparison is) and `runs/`. A
run's folder is made under a temporary name and renamed, hence it exists complete or not at all; a
comparison that was stopped goes on with the runs that are missing.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors

import sparsecraft
from sparsecraft.core.errors import SparsityError, StoreError
from sparsecraft.core.mask import Mask
from sparsecraft.lab.lock import LOCK, locked
from sparsecraft.model.files import atomic_directory, write_atomic

FORMAT = 1
HEADER = "store.json"
OUTPUTS = ("runs", "timings", "student", "model")
"""Folders that belong to a store and go when it is overwritten."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished cell of a comparison.

    Args:
        config: Everything that decides the outcome, as plain values; it names the folder.
        environment: Where and with what it ran.
        metrics: What was found, as plain values.
        examples: (n,) values by split, for paired comparisons.
        mask: What was kept, where the run pruned.
    """

    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    metrics: Mapping[str, Any]
    examples: Mapping[str, np.ndarray] = field(default_factory=dict)
    mask: Mask | None = None


class RunStore:
    """Reads and writes the runs of one comparison; `open_or_create` and `read` make one.

    Args:
        directory: The store's folder.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)

    @classmethod
    def read(cls, directory: Path) -> RunStore:
        """Returns the store in a folder, for reading.

        Raises:
            StoreError: If there is none, or it is of another format.
        """
        store = cls(directory)
        _check_header(store.header, store.directory)
        return store

    @property
    def header(self) -> dict[str, Any]:
        """What `store.json` says: format, version and the comparison."""
        path = self.directory / HEADER
        if not path.is_file():
            raise StoreError(
                f"{self.directory} is not a run store: it has no {HEADER}. "
                "Give the folder that `sparsecraft compare --out` wrote."
            )
        return _json(path)

    def path(self, config: Mapping[str, Any]) -> Path:
        """Returns the folder of the run with this config, whether it exists or not."""
        return self.directory / "runs" / run_name(config)

    def has(self, config: Mapping[str, Any]) -> bool:
        """Returns whether the run is finished."""
        return self.path(config).is_dir()

    def write(self, run: Run, also: Callable[[Path], None] | None = None) -> None:
        """Writes a run as a whole.

        Args:
            run: What to write.
            also: Called with the unfinished folder, to add files to it.

        Raises:
            CheckpointError: If the disk is full; no part of the run is left then.
        """
        with atomic_directory(self.path(run.config)) as folder:
            write_json(folder / "config.json", run.config)
            write_json(folder / "environment.json", run.environment)
            write_json(folder / "metrics.json", run.metrics)
            write_atomic(folder / "examples.npz", _npz(run.examples))
            if run.mask is not None:
                bits, metadata = run.mask.packed()
                write_atomic(folder / "mask.safetensors", to_safetensors(bits, metadata))
            if also is not None:
                also(folder)

    def get(self, config: Mapping[str, Any], *, mask: bool = False) -> Run:
        """Returns a finished run.

        Args:
            config: The run's config.
            mask: Whether its mask is read too.

        Raises:
            StoreError: If it is missing or damaged.
        """
        return _read_run(self.path(config), mask=mask)

    def runs(self) -> list[Run]:
        """Returns all finished runs, without masks, sorted by name."""
        root = self.directory / "runs"
        found = sorted(root.iterdir()) if root.is_dir() else []
        return [_read_run(path, mask=False) for path in found if not path.name.startswith(".")]

    def write_part(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes a JSON file of the store, for example "timings/dense"."""
        write_json(self.directory / f"{name}.json", value)

    def read_part(self, name: str) -> dict[str, Any] | None:
        """Returns a JSON file of the store, or None if it was not written yet."""
        path = self.directory / f"{name}.json"
        return _json(path) if path.is_file() else None


@contextmanager
def open_or_create(
    directory: Path, comparison: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[RunStore]:
    """Gives the store of this comparison, made new or found unfinished, locked for this process.

    Args:
        directory: Its folder.
        comparison: Settings and task, as plain values: what makes two comparisons the same.
        overwrite: Whether a store of another comparison is emptied, instead of refused.

    Raises:
        StoreError: If another process uses it, or it holds another comparison or version; the
            message says what differs. Nothing is changed then.
    """
    directory = Path(directory)
    check_free(directory, comparison, overwrite=overwrite)
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory):
        check_free(directory, comparison, overwrite=overwrite)
        if overwrite:
            _empty(directory)
        _remove_leftovers(directory)
        if not (directory / HEADER).is_file():
            header = {
                "sparsecraft_store": FORMAT,
                "sparsecraft": sparsecraft.__version__,
                "comparison": comparison,
            }
            write_json(directory / HEADER, header)
        yield RunStore(directory)


def check_free(directory: Path, comparison: Mapping[str, Any], *, overwrite: bool) -> None:
    """Raises StoreError unless this comparison may be written to the folder."""
    if directory.exists() and not directory.is_dir():
        raise StoreError(f"{directory} is a file; a folder is to be written there. Choose another.")
    if overwrite or not directory.is_dir():
        return
    if not (directory / HEADER).is_file():
        if any(not _is_leftover(path) for path in directory.iterdir()):
            raise StoreError(
                f"{directory} exists, is not empty and is not a run store, so it is kept. "
                "Choose another --out, or say --overwrite to write into it."
            )
        return
    header = _json(directory / HEADER)
    _check_header(header, directory, resume=True)
    differing = differences(header.get("comparison", {}), comparison)
    if differing:
        raise StoreError(
            f"{directory} holds another comparison, so it is kept: {'; '.join(differing[:5])}. "
            "Choose another --out, repeat the settings to resume it, or say --overwrite."
        )


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns what differs between two settings, one text for each key.

    Example:
        >>> differences({"seeds": 1, "task": "a"}, {"seeds": 2, "task": "a"})
        ['seeds was 1, now 2']
    """
    plain_old, plain_new = json.loads(canonical(old)), json.loads(canonical(new))
    return [
        f"{key} was {_short(plain_old.get(key))}, now {_short(plain_new.get(key))}"
        for key in sorted({*plain_old, *plain_new})
        if plain_old.get(key) != plain_new.get(key)
    ]


def run_name(config: Mapping[str, Any]) -> str:
    """Returns the folder name of a run: readable, and unique to its config."""
    digest = hashlib.blake2b(canonical(config).encode(), digest_size=6).hexdigest()
    named = ("kind", "method", "pattern", "sparsity")
    words = [str(config[key]) for key in named if config.get(key)]
    slug = re.sub(r"[^a-z0-9.]+", "-", "-".join(words).lower()).strip("-.")[:48]
    return f"{slug or 'run'}-s{config.get('seed', 0)}-{digest}"


def canonical(value: Mapping[str, Any]) -> str:
    """Returns the JSON text that is the same for equal settings."""
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes plain values as indented JSON, whole or not at all."""
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def _read_run(folder: Path, *, mask: bool) -> Run:
    if not folder.is_dir():
        raise StoreError(f"there is no run {folder.name} in {folder.parent.parent}")
    try:
        with np.load(folder / "examples.npz", allow_pickle=False) as arrays:
            examples = {name: arrays[name] for name in arrays.files}
        config, environment, metrics = (
            json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            for name in ("config", "environment", "metrics")
        )
        return Run(
            config=config,
            environment=environment,
            metrics=metrics,
            examples=examples,
            mask=_read_mask(folder / "mask.safetensors") if mask else None,
        )
    except (OSError, ValueError, KeyError, SafetensorError, zipfile.BadZipFile) as error:
        if isinstance(error, SparsityError):
            raise
        raise StoreError(
            f"run {folder.name} is damaged ({error}). Delete the folder {folder} and run the same "
            "command again: only this run is repeated."
        ) from error


def _read_mask(path: Path) -> Mask | None:
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        return Mask.unpacked({name: file.get_tensor(name) for name in file.keys()}, file.metadata())  # noqa: SIM118


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}); the store is damaged") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path} does not hold what a run store writes; the store is damaged")
    return value


def _check_header(header: Mapping[str, Any], directory: Path, *, resume: bool = False) -> None:
    found = header.get("sparsecraft_store")
    if found != FORMAT:
        raise StoreError(
            f"{directory} is a run store of format {found!r}; this sparsecraft "
            f"({sparsecraft.__version__}) reads format {FORMAT}. Use the version that wrote it "
            f"({header.get('sparsecraft', 'unknown')}), or choose another folder."
        )
    if resume and header.get("sparsecraft") != sparsecraft.__version__:
        raise StoreError(
            f"{directory} was begun with sparsecraft {header.get('sparsecraft')}, this is "
            f"{sparsecraft.__version__}: their runs are not mixed. Choose another --out, go on "
            "with the old version, or say --overwrite."
        )


def _empty(directory: Path) -> None:
    """Removes a store's header and its folders; each disappears at once, by a rename."""
    (directory / HEADER).unlink(missing_ok=True)
    for name in OUTPUTS:
        if (directory / name).is_dir():
            (directory / name).rename(directory / f".{name}.{os.getpid()}.old")


def _remove_leftovers(directory: Path) -> None:
    """Removes what a killed process left unfinished, in the store and among its runs."""
    for folder in (directory, directory / "runs", directory / "timings"):
        for path in list(folder.iterdir()) if folder.is_dir() else []:
            ours = folder != directory and path.name.startswith(".")
            if ours or (_is_leftover(path) and path.name != LOCK):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_leftover(path: Path) -> bool:
    """Whether the name is one that only unfinished writing of a store leaves behind."""
    folders = "|".join(OUTPUTS)
    files = "(store|facts|finish|comparison).json|results.csv|report.html"
    temporary = rf"\.({folders})\..+\.(part|old)|\.({files})\..+|\.({folders})\.\d+\.old"
    return path.name == LOCK or re.fullmatch(temporary, path.name) is not None


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{n: np.asarray(each) for n, each in arrays.items()})
    return buffer.getvalue()


def _short(value: Any) -> str:
    text = "not set" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
