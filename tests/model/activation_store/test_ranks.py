"""Two processes that harvest into one folder: the first writes, both read the same."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.model.activation_store.test_shards import make
from tests.two_processes import found_by_ranks

from sparsecraft.core.errors import SparsityError

TEXTS = {"whole": {}, "short": {"texts": ["1 2"]}}


def work(rank, folder):
    """Harvests as one of two ranks, from enough text and from too little; writes what came out."""
    folder = Path(folder)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    torch.save(
        {name: harvest(rank, folder / name, changes) for name, changes in TEXTS.items()},
        folder / f"rank{rank}.pt",
    )
    dist.destroy_process_group()


def harvest(rank, folder, changes):
    try:
        store = make(folder, **changes)
        reader = store.reader(20, rank=rank, world=2)
        return {"rows": len(store), "kept": store.report.kept_shards, "seen": next(reader).index}
    except SparsityError as error:
        return {"error": str(error)}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return found_by_ranks(__file__, tmp_path_factory.mktemp("ranks"))


def test_both_get_what_the_first_one_wrote(ranks):
    first, second = (each["whole"] for each in ranks)
    assert first["rows"] == second["rows"] == 469 and first["kept"] == 0
    assert not set(first["seen"].tolist()) & set(second["seen"].tolist())


def test_both_fail_where_the_first_one_fails(ranks):
    first, second = (each["short"] for each in ranks)
    assert "too few for one context" in first["error"]
    assert "rank 0 failed" in second["error"]
