"""Stores on disk: a kill at any write, damaged files, and a folder that holds something else."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from tests.models import tiny_llama, tiny_tokenizer

from sparsecraft.core.errors import CheckpointError, InvalidValue, NonFinite, StoreError
from sparsecraft.model.activation_store import ActivationStore, harvest

HOOK = "blocks.0.hook_resid_post"
TEXTS = [" ".join(str((i * 7 + j * j) % 50) for j in range(40)) for i in range(12)]
OPTIONS = {
    "at": HOOK, "texts": TEXTS, "context": 16, "batch_size": 4, "shard_bytes": 17_000,
}  # fmt: skip


def make(path, **changes):
    options = {**OPTIONS, "tokenizer": tiny_tokenizer(), "gradients": True, **changes}
    return ActivationStore(tiny_llama(), path=path, **options)


def contents(folder):
    """Returns the bytes of all files but the report, which says how often work was taken up."""
    found = {}
    for path in sorted(folder.iterdir()):
        found[path.name] = path.read_bytes()
    index = json.loads(found.pop("activation_store.json"))
    assert index["report"].pop("kept_shards") + index["report"].pop("remade_shards") >= 0
    return found, index


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "store"
    return folder, make(folder)


def test_shards_are_small_raw_files_and_hold_everything(whole):
    folder, store = whole
    index = json.loads((folder / "activation_store.json").read_text())
    assert len(index["shards"]) == 8 and sum(s["rows"] for s in index["shards"]) == len(store)
    for shard in index["shards"]:
        parts = shard["files"]
        assert set(parts) == {"x", "gradient", "tokens", "counts", "positions"}
        assert parts["x"]["bytes"] + parts["gradient"]["bytes"] <= OPTIONS["shard_bytes"]
    first = torch.from_file(str(folder / "x-00000.bin"), size=32).tolist()
    assert first == store.rows(torch.tensor([0])).x[0].tolist()


def test_what_is_opened_is_what_was_harvested(whole):
    folder, store = whole
    opened, memory = ActivationStore.open(folder), make(None)
    index = torch.randperm(len(store), generator=torch.Generator().manual_seed(0))
    for other in (opened, memory):
        assert torch.equal(other.rows(index).x, store.rows(index).x)
        assert torch.equal(other.rows(index).gradient, store.rows(index).gradient)
        assert torch.equal(other.tokens, store.tokens)
        assert other.place(index)[1].equal(store.place(index)[1])
    assert opened.info == store.info and opened.report == store.report
    assert opened.digest == store.digest == memory.digest
    assert store.report.bytes == sum(p.stat().st_size for p in folder.glob("*.bin"))


def test_killed_at_any_write_it_goes_on_and_loses_nothing(tmp_path):
    script = """
        import os, signal, sys
        from pathlib import Path
        from sparsecraft.model.activation_store import shards
        from tests.model.activation_store.test_shards import TEXTS, contents, make

        work, short = Path(sys.argv[1]), {"texts": TEXTS[:4], "gradients": False}
        make(work / "whole", shard_bytes=9000, **short)
        expected = contents(work / "whole")
        os.fsync = lambda handle: None  # only a power cut needs it
        kept = set()
        for n in range(1, 100):
            folder = work / str(n)
            child = os.fork()
            if child == 0:
                write, seen = shards.write_atomic, 0

                def dying(path, data):
                    global seen
                    seen += 1
                    if seen == n:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        (path.parent / f".{path.name}.half").write_bytes(b"half")
                        os.kill(os.getpid(), signal.SIGKILL)
                    write(path, data)

                shards.write_atomic = dying
                make(folder, shard_bytes=9000, **short)
                os._exit(0)
            killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
            again = make(folder, shard_bytes=9000, **short)
            kept.add(again.report.kept_shards)
            assert contents(folder) == expected, n
            if not killed:
                break
        print(n, sorted(kept))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # 3 shards of 4 files and the index, the index before the first and after the last
    assert done.stdout.split("\n")[-2] == "18 [0, 1, 2, 3]"


def test_what_is_complete_does_not_run_the_model(whole, monkeypatch):
    folder, store = whole
    monkeypatch.setattr(harvest.Recorder, "run", lambda *_: pytest.fail("the model ran"))
    again = make(folder)
    assert len(again) == len(store) and again.report.kept_shards == 8


def damaged(whole, tmp_path, damage):
    """Returns a copy of the store, of which a file was damaged."""
    import shutil

    folder = tmp_path / "store"
    shutil.copytree(whole[0], folder)
    damage(folder / "gradient-00003.bin")
    return folder


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), r"cut short: it has \d+ bytes"),
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "is too long"),
    ],
)
def test_a_damaged_shard_is_named_and_alone_made_anew(whole, tmp_path, damage, message):
    folder = damaged(whole, tmp_path, damage)
    with pytest.raises(StoreError, match=rf"gradient-00003\.bin.*{message[-10:]}") as caught:
        ActivationStore.open(folder)
    assert "only what is missing is made" in str(caught.value)
    again = make(folder)
    assert (again.report.kept_shards, again.report.remade_shards) == (7, 1)
    assert contents(folder) == contents(whole[0])
    assert "1 damaged" in str(again.report)


def test_a_changed_byte_is_found_by_verify(whole, tmp_path):
    whole[1].verify()
    flip = lambda path: path.write_bytes(b"\x01" + path.read_bytes()[1:])  # noqa: E731
    folder = damaged(whole, tmp_path, flip)
    store = ActivationStore.open(folder)
    with pytest.raises(StoreError, match=r"gradient-00003\.bin was changed after"):
        store.verify()


def test_an_unfinished_store_is_not_opened(whole, tmp_path):
    folder = damaged(whole, tmp_path, lambda path: None)
    index = folder / "activation_store.json"
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "report": None, "shards": content["shards"][:2]}))
    with pytest.raises(StoreError, match="stopped after 2 shards"):
        ActivationStore.open(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": TEXTS[:8]}, "the text ends before what"),
        ({"texts": [*TEXTS, TEXTS[0]]}, "from context 28 on"),
        ({"texts": [TEXTS[1], *TEXTS[1:]]}, "differs from what .* from context 0 on"),
        ({"at": "model.layers.1"}, r"place is 'model\.layers\.1\.output', there"),
        ({"context": 12}, "context is 12, there 16"),
        ({"gradients": False}, "gradients is False, there True"),
        ({"dtype": torch.bfloat16}, "dtype is 'bfloat16', there 'float32'"),
        ({"rows": 10}, "rows is 10, there None"),
        ({"to": "model.layers.1"}, "target_place is"),
        ({"skip_special": False}, "special_ids is"),
    ],
)
def test_a_folder_that_holds_something_else_is_kept(whole, changes, message):
    before = contents(whole[0])
    with pytest.raises(StoreError, match=message):
        make(whole[0], **changes)
    assert contents(whole[0]) == before


def test_another_model_is_refused_and_another_name_of_the_place_is_not(whole):
    with pytest.raises(StoreError, match="model_digest is"):
        ActivationStore(
            tiny_llama(seed=1), path=whole[0], tokenizer=tiny_tokenizer(), gradients=True, **OPTIONS
        )
    assert len(make(whole[0], at="model.layers.0.output")) == len(whole[1])


def test_other_files_are_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="holds other files"):
        make(tmp_path)
    with pytest.raises(StoreError, match="there is no activation store"):
        ActivationStore.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_index_that_is_no_index_is_said_to_be_damaged(tmp_path):
    index = tmp_path / "activation_store.json"
    index.write_text("{")
    with pytest.raises(StoreError, match="is damaged"):
        ActivationStore.open(tmp_path)
    index.write_text('{"format": 9, "sparsecraft": "9.9"}')
    with pytest.raises(StoreError, match=r"has the format 9.*9\.9"):
        make(tmp_path)


def test_a_stop_by_values_that_are_not_finite_goes_on_when_they_are_left_out(tmp_path):
    batches = [torch.randn(4, 8) for _ in range(6)]
    batches[4][2] = float("nan")
    model = torch.nn.Sequential(torch.nn.Identity())
    options = {"at": "0", "batches": batches, "path": tmp_path, "shard_bytes": 130}
    with pytest.raises(NonFinite, match="context 18"):
        ActivationStore(model, **options)
    store = ActivationStore(model, skip_non_finite=True, **options)
    assert store.report.kept_shards == 4 and store.report.non_finite == 1 and len(store) == 23
    kept = torch.cat(batches)[[i for i in range(24) if i != 18]]
    assert torch.equal(store.rows(torch.arange(23)).x, kept)


def test_a_batch_that_exceeds_a_shard_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InvalidValue, match="give a smaller batch_size"):
        make(tmp_path, shard_bytes=1000)
    assert not list(tmp_path.glob("*.bin"))


def test_the_size_is_said_before_and_compared_with_the_disk(tmp_path, monkeypatch):
    told = []
    store = make(tmp_path / "a", progress=lambda *news: told.append(news))
    said = told[0][0]
    assert said.startswith("about 0.") and said.endswith(f"MB to {tmp_path / 'a'}")
    assert f"{store.report.bytes / 1e6:,.1f} MB" in str(store.report)
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(harvest.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StoreError, match=r"would take about .* GB left: give fewer rows"):
        make(tmp_path / "b")


def test_a_full_disk_leaves_what_is_done(tmp_path, monkeypatch):
    from sparsecraft.model import files

    plain, seen = files.os.fsync, []

    def full(handle):
        seen.append(1)
        if len(seen) == 20:
            raise OSError(28, "No space left on device")
        plain(handle)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        make(tmp_path / "store")
    monkeypatch.undo()
    assert make(tmp_path / "store").report.kept_shards == 3
