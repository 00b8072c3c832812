"""What two ranks of a training decide together: new latents, errors, and when to stop."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.two_processes import found_by_ranks

from sparsecraft.core.seeds import generator
from sparsecraft.methods.codes.gradient_topk import GradientTopK
from sparsecraft.methods.codes.jumprelu import JumpReLU
from sparsecraft.methods.codes.relu import ReLU
from sparsecraft.model.activation_store import ActivationStore
from sparsecraft.model.sae import Resampling, SAETraining, SparseAutoencoder
from sparsecraft.model.sae.trainer import Trainer

PLAN = SAETraining(steps=6, batch=16, learning_rate=3e-3, warm_up=0, checkpoint_every=5)


def rows(seed: int = 1) -> torch.Tensor:
    return torch.randn(100, 6, generator=generator(seed, "rows"))


def resampled() -> dict[str, torch.Tensor]:
    """Half of the latents are dead, and start anew after four steps."""
    sae = SparseAutoencoder(6, 12, JumpReLU())
    with torch.no_grad():
        sae.b_enc[:6] = -30.0
    settings = Resampling(every=4, until=1.0)
    plan = SAETraining(**{**vars(PLAN), "dead_after": 48, "resample": settings})
    first = SparseAutoencoder(6, 12, JumpReLU()).W_dec.detach()
    sae.fit(rows(), plan)
    moved = (sae.W_dec.detach() * sae.report.scale - first).norm(dim=1)
    return {**{name: tensor.clone() for name, tensor in sae.state_dict().items()}, "moved": moved}


def error_of_a_step(trainer: Trainer, batch: Any) -> str:
    try:
        trainer.step(batch)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def not_finite(rank: int) -> str:
    """One rank reads a row that cannot be encoded."""
    trainer = Trainer(SparseAutoencoder(6, 12, ReLU()), PLAN)
    x = rows(seed=rank)
    if rank == 1:
        x[3, 2] = torch.nan
    return error_of_a_step(trainer, ActivationStore.from_tensor(rows()).rows(torch.arange(8))) + (
        "; " + error_of_a_step(trainer, _batch(x))
    )


def _batch(x: torch.Tensor, gradient: torch.Tensor | None = None) -> Any:
    batch = ActivationStore.from_tensor(rows(), gradient=gradient).rows(torch.arange(8))
    return type(batch)(x=x[:8], gradient=batch.gradient, target=None, index=batch.index)


def without_gradient(rank: int, everywhere: bool) -> str:
    """The gradients of a batch are zero on one rank, or on both."""
    trainer = Trainer(SparseAutoencoder(6, 12, GradientTopK(k=2)), PLAN)
    zero = everywhere or rank == 1
    return error_of_a_step(trainer, _batch(rows(), rows(2) * (not zero)))


def stopped(rank: int, folder: str) -> list[Any]:
    """Ctrl-C reaches one rank only."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sae = SparseAutoencoder(6, 12, ReLU())
    steps = []

    def press(stage: str, done: int, all_steps: int) -> None:
        steps.append(done)
        if rank == 1 and done == 3:
            os.kill(os.getpid(), signal.SIGINT)

    try:
        sae.fit(rows(), PLAN, directory=f"{folder}/stopped", progress=press)
    except KeyboardInterrupt:
        steps.append("stopped")
    return steps


def work(rank: int, folder: str) -> None:
    """The body of a process."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {
        "resampled": resampled(),
        "not finite": not_finite(rank),
        "one without gradient": without_gradient(rank, everywhere=False),
        "none with gradient": without_gradient(rank, everywhere=True),
        "stopped": stopped(rank, folder),
    }
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ranks(folder):
    return found_by_ranks(__file__, folder)


def test_latents_that_start_anew_are_the_same_on_both(ranks):
    first, second = (found["resampled"] for found in ranks)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert float(first["moved"][:6].min()) > 0.3
    assert float(first["moved"][6:].max()) < 0.3


def test_an_error_of_one_is_an_error_of_both(ranks):
    first, second = (found["not finite"] for found in ranks)
    assert first.startswith("no error; SparsityError: another rank failed in the same step")
    assert second.startswith("no error; NonFinite: 1 of 8 rows have NaN")


def test_gradients_are_missed_where_no_rank_has_any(ranks):
    for found in ranks:
        assert found["one without gradient"] == "no error"
        assert "InvalidValue: the gradients of all 16 rows" in found["none with gradient"]


def test_ctrl_c_on_one_stops_both_after_the_same_step(ranks, folder):
    for found in ranks:
        assert found["stopped"] == [1, 2, 3, "stopped"]
    kept = torch.load(folder / "stopped" / "training.pt")["trainers"]
    assert kept[0]["steps_done"] == 3
