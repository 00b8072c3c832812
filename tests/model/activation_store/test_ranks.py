"""Two processes that harvest into one folder, and two that each run the model as they read."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests.model.activation_store.test_live import READ
from tests.model.activation_store.test_shards import make
from tests.models import tiny_llama, tiny_tokenizer
from tests.two_processes import found_by_ranks

from sparsecraft.core.errors import SparsityError
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.activation_store import LiveActivations
from sparsecraft.model.sae import SAETraining, SparseAutoencoder

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
    found = {name: harvest(rank, folder / name, changes) for name, changes in TEXTS.items()}
    torch.save(found | {"live": train(rank), "broken": broken(rank)}, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


def harvest(rank, folder, changes):
    try:
        store = make(folder, **changes)
        reader = store.reader(20, rank=rank, world=2)
        return {"rows": len(store), "kept": store.report.kept_shards, "seen": next(reader).index}
    except SparsityError as error:
        return {"error": str(error)}


def live():
    sizes = {"buffer_rows": 128, "kept_rows": 200}
    return LiveActivations(tiny_llama(), **READ, tokenizer=tiny_tokenizer(), **sizes)


def train(rank):
    """Trains on the stream; returns the weights, and which rows this rank read."""
    sae = SparseAutoencoder(32, 64, TopK(k=4))
    sae.fit(live(), SAETraining(steps=5, batch=40, learning_rate=1e-3))
    reader = live().reader(20, rank=rank, world=2)
    seen = torch.cat([next(reader).index for _ in range(5)])
    return {"W_dec": sae.W_dec.detach(), "seen": seen}


def broken(rank):
    """Reads a stream whose model breaks on the second rank; returns the error."""
    source = live()
    reader = source.reader(20, rank=rank, world=2)
    next(reader)
    if rank == 1:
        with torch.no_grad():
            source._model.model.embed_tokens.weight.fill_(torch.nan)
    try:
        for _ in range(50):
            next(reader)
    except SparsityError as error:
        return str(error)


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


def test_a_stream_is_divided_and_both_train_one_autoencoder(ranks):
    first, second = (each["live"] for each in ranks)
    assert torch.equal(first["W_dec"], second["W_dec"])
    assert not torch.equal(first["W_dec"], SparseAutoencoder(32, 64, TopK(k=4)).W_dec)
    batches = [set((each["seen"] // 2**32).tolist()) for each in (first, second)]
    assert not batches[0] & batches[1]


def test_both_stop_where_the_model_of_one_breaks(ranks):
    first, second = (each["broken"] for each in ranks)
    assert "another rank failed" in first and "NaN or infinite activations" in second
