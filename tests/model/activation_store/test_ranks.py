"""Two processes that harvest into one folder: the first writes, both read the same."""

import multiprocessing
from datetime import timedelta

import torch
import torch.distributed as dist
from tests.model.activation_store.test_shards import make

from sparsecraft.core.errors import SparsityError


def work(rank, folder, changes):
    """Harvests as one of two ranks, and writes what came out."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    try:
        store = make(folder / "store", **changes)
        reader = store.reader(20, rank=rank, world=2)
        found = {"rows": len(store), "kept": store.report.kept_shards, "seen": next(reader).index}
    except SparsityError as error:
        found = {"error": str(error)}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def two_ranks(folder, **changes):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(r, folder, changes)) for r in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


def test_both_get_what_the_first_one_wrote(tmp_path):
    first, second = two_ranks(tmp_path)
    assert first["rows"] == second["rows"] == 469 and first["kept"] == 0
    assert not set(first["seen"].tolist()) & set(second["seen"].tolist())


def test_both_fail_where_the_first_one_fails(tmp_path):
    first, second = two_ranks(tmp_path, texts=["1 2"])
    assert "too few for one context" in first["error"]
    assert "rank 0 failed" in second["error"]
