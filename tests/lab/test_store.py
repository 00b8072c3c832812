import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import sparsecraft
from sparsecraft.core.errors import StoreError
from sparsecraft.core.mask import Mask
from sparsecraft.lab.store import Run, RunStore, differences, open_or_create, run_name

COMPARISON = {"task": "digits", "seeds": 2, "methods": ["wanda"]}
CONFIG = {"kind": "sparse", "method": "wanda", "pattern": "2:4", "sparsity": 0.5, "seed": 1}


def a_run(seed: int = 1) -> Run:
    return Run(
        config=CONFIG | {"seed": seed},
        environment={"machine": {"cores": 2}},
        metrics={"test": 0.25, "seconds": {"total": 1.5}},
        examples={"validation": np.array([0.5, 1.0]), "test": np.array([0.25])},
        mask=Mask({"w": torch.tensor([[True, False, True], [False, False, True]])}),
    )


def files_of(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): content(path)
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def content(path: Path) -> bytes:
    """The bytes; of a mask the tensors, since safetensors orders its metadata at random."""
    if path.suffix == ".safetensors":
        return repr(sorted((k, v.tolist()) for k, v in load_file(path).items())).encode()
    return path.read_bytes()


def test_what_is_written_is_read_back(tmp_path):
    with open_or_create(tmp_path / "s", COMPARISON) as store:
        assert not store.has(CONFIG)
        store.write(a_run())
    found = RunStore.read(tmp_path / "s").get(CONFIG, mask=True)
    assert found.config == CONFIG
    assert found.metrics["test"] == 0.25
    assert found.examples["validation"].tolist() == [0.5, 1.0]
    assert found.mask is not None
    assert torch.equal(found.mask["w"], a_run().mask["w"])


def test_a_run_that_fails_to_be_written_leaves_nothing(tmp_path):
    def broken(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with open_or_create(tmp_path / "s", COMPARISON) as store:
        with pytest.raises(sparsecraft.SparsityError, match="No space left"):
            store.write(a_run(), broken)
        assert not store.has(CONFIG)
        assert list((tmp_path / "s" / "runs").iterdir()) == []
        store.write(a_run())
        assert store.has(CONFIG)


def test_names_are_readable_and_distinct():
    assert run_name(CONFIG).startswith("sparse-wanda-2-4-0.5-s1-")
    assert run_name(CONFIG) == run_name(dict(reversed(CONFIG.items())))
    assert run_name(CONFIG) != run_name(CONFIG | {"seed": 2})
    own = run_name({"kind": "sparse", "method": "../a b/mine.py:Mine", "seed": 0})
    assert "/" not in own
    assert " " not in own


def test_the_same_comparison_resumes(tmp_path):
    with open_or_create(tmp_path / "s", COMPARISON) as store:
        store.write(a_run())
    with open_or_create(tmp_path / "s", json.loads(json.dumps(COMPARISON))) as store:
        assert store.has(CONFIG)


def test_another_comparison_is_refused_and_the_store_kept(tmp_path):
    with open_or_create(tmp_path / "s", COMPARISON) as store:
        store.write(a_run())
    before = files_of(tmp_path / "s")
    with (
        pytest.raises(StoreError, match="seeds was 2, now 3"),
        open_or_create(tmp_path / "s", COMPARISON | {"seeds": 3}),
    ):
        pass
    assert files_of(tmp_path / "s") == before


def test_overwrite_empties_the_store_but_not_the_folder(tmp_path):
    with open_or_create(tmp_path / "s", COMPARISON) as store:
        store.write(a_run())
    (tmp_path / "s" / "mine.txt").write_text("keep me")
    other = COMPARISON | {"seeds": 3}
    with open_or_create(tmp_path / "s", other, overwrite=True) as store:
        assert store.runs() == []
        assert store.header["comparison"]["seeds"] == 3
    assert (tmp_path / "s" / "mine.txt").read_text() == "keep me"
    assert not list((tmp_path / "s").glob(".*.old"))


def test_a_folder_that_is_no_store_is_kept(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match="not a run store"), open_or_create(tmp_path, COMPARISON):
        pass
    assert files_of(tmp_path) == {"thesis.tex": b"years of work"}


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "s").write_text("")
    with (
        pytest.raises(StoreError, match="is a file"),
        open_or_create(tmp_path / "s", COMPARISON, overwrite=True),
    ):
        pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsecraft_store": 99}, "format 99"),
        ({"sparsecraft": "0.0.1"}, "begun with sparsecraft 0.0.1"),
    ],
)
def test_a_store_of_another_version(tmp_path, changes, message):
    with open_or_create(tmp_path / "s", COMPARISON):
        pass
    header = json.loads((tmp_path / "s" / "store.json").read_text())
    (tmp_path / "s" / "store.json").write_text(json.dumps(header | changes))
    with pytest.raises(StoreError, match=message), open_or_create(tmp_path / "s", COMPARISON):
        pass


def test_reading_refuses_other_formats_and_other_folders(tmp_path):
    with pytest.raises(StoreError, match="not a run store"):
        RunStore.read(tmp_path)
    (tmp_path / "store.json").write_text('{"sparsecraft_store": 0}')
    with pytest.raises(StoreError, match="format 0"):
        RunStore.read(tmp_path)


@pytest.mark.parametrize("name", ["metrics.json", "examples.npz", "mask.safetensors"])
def test_a_damaged_run_is_named(tmp_path, name):
    with open_or_create(tmp_path / "s", COMPARISON) as store:
        store.write(a_run())
        path = store.path(CONFIG) / name
        path.write_bytes(path.read_bytes()[:10])
        with pytest.raises(StoreError, match="damaged") as raised:
            store.get(CONFIG, mask=True)
    assert store.path(CONFIG).name in str(raised.value)


def test_a_second_process_is_refused_and_a_dead_ones_lock_is_free(tmp_path):
    holds = textwrap.dedent(
        f"""
        import os, sys
        from pathlib import Path
        from sparsecraft.lab.store import open_or_create
        with open_or_create(Path({str(tmp_path / "s")!r}), {COMPARISON!r}):
            print("held", flush=True)
            sys.stdin.read()
            os._exit(9)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with (
        pytest.raises(StoreError, match=f"number {process.pid}"),
        open_or_create(tmp_path / "s", COMPARISON),
    ):
        pass
    process.communicate("")
    assert process.returncode == 9
    with open_or_create(tmp_path / "s", COMPARISON) as store:
        assert store.runs() == []


# Forks a process for each n, which ends, as a kill would, just before its n-th change to the file
# system; prints the n at which a process came through.
KILL = """
import os, sys
from pathlib import Path
import tests.lab.test_store as here
from sparsecraft.lab.store import open_or_create

def work(root, count):
    seen = 0

    def audit(event, args):
        nonlocal seen
        changes = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")
        opens = event == "open" and isinstance(args[2], int)
        writes = opens and args[2] & (os.O_WRONLY | os.O_RDWR)
        if (changes or writes) and str(root) in str(args[0]):
            seen += 1
            if seen == count:
                os._exit(9)

    sys.addaudithook(audit)
    here.fill(root)
    os._exit(0)

count, status = 0, 9
while status == 9:
    count += 1
    child = os.fork()
    if child == 0:
        work(Path(sys.argv[1]) / str(count), count)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(count, status)
"""


def fill(root: Path) -> None:
    with open_or_create(root, COMPARISON) as store:
        for seed in (1, 2):
            if not store.has(CONFIG | {"seed": seed}):
                store.write(a_run(seed))
        store.write_part("facts", {"seen": True})


def test_killed_at_any_write_the_store_is_whole_and_resumes(tmp_path):
    command = [sys.executable, "-c", KILL, str(tmp_path)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    last, status = map(int, output.split())
    assert status == 0
    assert last > 30
    wanted = files_of(tmp_path / str(last))
    complete = RunStore(tmp_path / str(last))
    for count in range(1, last):
        root = tmp_path / str(count)
        with open_or_create(root, COMPARISON) as store:
            for run in store.runs():
                assert files_of(store.path(run.config)) == files_of(complete.path(run.config))
            assert not [path for path in root.rglob(".*") if path.name != ".lock"]
        fill(root)
        assert files_of(root) == wanted


def test_differences_name_what_was_not_set():
    assert differences({"a": 1}, {"a": 1, "b": None}) == []
    assert differences({}, {"dtype": "float32"}) == ['dtype was not set, now "float32"']


def test_numbers_that_json_has_no_word_for_are_refused(tmp_path):
    with open_or_create(tmp_path, COMPARISON) as store:
        with pytest.raises(ValueError, match="nan"):
            store.write_part("facts", {"x": float("nan")})
        assert store.read_part("facts") is None
