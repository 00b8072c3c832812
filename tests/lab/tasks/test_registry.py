from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.lab.tasks import load_task
from sparsecraft.lab.tasks.cache import cache_directory, cached, directory_digest, fingerprint


def test_unknown_task_names_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'stories260k'"):
        load_task("storys260k")


def test_unknown_and_missing_options_name_the_task_and_its_options():
    with pytest.raises(InvalidValue, match=r"no option 'epochs'. Its options: steps, seed"):
        load_task("digits-mlp", epochs=3)
    with pytest.raises(InvalidValue, match="needs the option 'model_dir'"):
        load_task("causal-text", text="a.txt")
    with pytest.raises(InvalidValue, match="steps=0"):
        load_task("digits-mlp", steps=0)


def test_importing_the_tasks_imports_no_heavy_package():
    heavy = ("transformers", "sklearn", "skimage", "datasets", "tokenizers", "PIL")
    code = f"import sys, sparsecraft.lab.tasks; print([m for m in {heavy!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_cache_folder_can_be_set(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSECRAFT_CACHE", str(tmp_path / "mine"))
    assert cache_directory() == tmp_path / "mine"
    monkeypatch.delenv("SPARSECRAFT_CACHE")
    assert cache_directory().name == "sparsecraft"


def test_a_failed_build_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSECRAFT_CACHE", str(tmp_path))

    def fails(folder: Path) -> None:
        (folder / "half").write_text("written")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        cached("key", fails)
    assert list(tmp_path.iterdir()) == []
    folder = cached("key", lambda folder: (folder / "whole").write_text("done"))
    assert (folder / "whole").read_text() == "done"
    assert cached("key", fails) == folder


def test_two_builders_at_once_share_one_whole_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SPARSECRAFT_CACHE", str(tmp_path))
    both_inside = threading.Barrier(2)

    def build(folder: Path) -> None:
        both_inside.wait(timeout=30)
        (folder / "file").write_text("whole")

    found: list[Path] = []
    workers = [threading.Thread(target=lambda: found.append(cached("key", build))) for _ in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [tmp_path / "key"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert (tmp_path / "key" / "file").read_text() == "whole"


def test_fingerprints_change_with_settings_contents_and_their_order(tmp_path):
    base = fingerprint({"a": 1}, ["x", "y"], ["z"])
    others = [
        fingerprint({"a": 2}, ["x", "y"], ["z"]),
        fingerprint({"a": 1}, ["y", "x"], ["z"]),
        fingerprint({"a": 1}, ["x"], ["y", "z"]),
        fingerprint({"a": 1}, ["x", "yz"]),
    ]
    assert len({base, *others}) == 5
    (tmp_path / "model").write_bytes(b"one")
    before = directory_digest(tmp_path)
    (tmp_path / "model").write_bytes(b"two")
    assert directory_digest(tmp_path) != before
