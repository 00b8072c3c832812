"""Every activation that makes codes sparse, through the same laws.

Two processes are started once and train an autoencoder of every activation; what they found is
compared with one process that reads both halves of every batch.
"""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path

import pytest
import torch
from tests.two_processes import found_by_ranks

from sparsecraft.core import catalog
from sparsecraft.core.code import Code
from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.kinds import Activation, Elementwise, Selecting
from sparsecraft.core.seeds import generator
from sparsecraft.model.activation_store import ActivationStore
from sparsecraft.model.sae import SAETraining, SparseAutoencoder
from sparsecraft.model.sae.counters import FiringCounter
from sparsecraft.model.sae.trainer import Trainer

D_IN, D_SAE, BATCH, STEPS = 12, 24, 32, 8
CODES = [name for name in catalog.names() if issubclass(catalog.get(name).cls, Activation)]
# Small weights of penalties and short buffers, so that a few steps show what each does.
SETTINGS = {
    "k": 3, "l1": 0.1, "l0": 0.1, "bandwidth": 0.5, "after": 0.5,
    "groups": 4, "buffer": 64, "high": 0.5, "low": 0.2,
}  # fmt: skip
TRAINING = SAETraining(
    steps=STEPS, batch=BATCH, learning_rate=3e-3, warm_up=0, dead_after=64, checkpoint_every=3
)


@cache
def built(name: str) -> Activation:
    options = catalog.get(name).options
    return catalog.build(name, **{k: v for k, v in SETTINGS.items() if k in options})


def made(name: str, seed: int = 0) -> SparseAutoencoder:
    form = {"tied": True, "row_norm": "unit"} if built(name).moves_bias else {}
    return SparseAutoencoder(D_IN, D_SAE, built(name), seed=seed, **form)


def rows(count: int = 200, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, D_IN, generator=generator(seed, "rows")) * 3 + 1


def store(name: str) -> ActivationStore:
    slope = rows(seed=2) if built(name).needs_gradient else None
    return ActivationStore.from_tensor(rows(), gradient=slope)


def fitted(name: str, **options: object) -> SparseAutoencoder:
    return made(name).fit(store(name), TRAINING, **options)


def weights(sae: SparseAutoencoder) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in sae.state_dict().items()}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Returns whether all entries are equal; NaN, which is "unset", equals itself."""
    return torch.equal(one.double().nan_to_num(-7.0), other.double().nan_to_num(-7.0))


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [key for key, value in one.items() if not same(value, other[key])]


@pytest.mark.parametrize("name", CODES)
def test_training_moves_weights_and_one_seed_gives_one_result(name):
    one, other = fitted(name), fitted(name)
    assert differing(weights(one), weights(other)) == []
    assert one.report.history == other.report.history
    assert {"W_dec", "b_dec"} <= set(differing(weights(one), weights(made(name))))
    assert differing(weights(made(name, seed=1)), weights(made(name)))


@pytest.mark.parametrize("name", CODES)
def test_taken_up_after_a_stop_equals_uninterrupted(name, tmp_path):
    class Stopped(Exception):
        pass

    def stop(stage, done, steps):
        if done == 5:
            raise Stopped

    whole = fitted(name, directory=tmp_path / "whole")
    with pytest.raises(Stopped):
        fitted(name, directory=tmp_path / "run", progress=stop)
    torch.manual_seed(12345)  # the state of torch's own stream is taken up too
    resumed = fitted(name, directory=tmp_path / "run")
    assert resumed.report.resumed_from == 3
    assert differing(weights(resumed), weights(whole)) == []
    assert resumed.report.history == whole.report.history
    ends = [torch.load(tmp_path / part / "training.pt") for part in ("whole", "run")]
    assert ends[0]["reader"] == ends[1]["reader"]
    first, second = (end["trainers"][0] for end in ends)
    assert differing(first["counter"], second["counter"]) == []
    for index, moments in first["optimizer"]["state"].items():
        assert differing(moments, second["optimizer"]["state"][index]) == []


@pytest.mark.parametrize("name", CODES)
def test_a_copy_and_a_loaded_one_compute_the_same(name):
    sae = fitted(name)
    x = rows(20, seed=3)
    loaded = made(name, seed=9)
    loaded.load_state_dict(sae.state_dict())
    assert torch.equal(copy.deepcopy(sae)(x), sae(x))
    assert torch.equal(loaded.eval()(x), sae(x))


@pytest.mark.parametrize("name", CODES)
def test_a_row_alone_has_the_code_that_it_has_among_others(name):
    sae, x = fitted(name), rows(30, seed=3)
    alone = torch.cat([sae.encode(row) for row in x.split(1)])
    torch.testing.assert_close(sae.encode(x), alone)
    assert (alone != 0).any()


@pytest.mark.parametrize("name", CODES)
def test_dense_and_sparse_codes_are_one(name):
    sae, x = fitted(name), rows(30, seed=3)
    code = sae.sparse_encode(x)
    assert torch.equal(code.dense(), sae.encode(x))
    inner, _ = sae.normalise_rows(x)
    out = sae.reconstruct(code, inner)
    torch.testing.assert_close(out, sae.decode(sae.encode(x)))


@pytest.mark.parametrize("name", CODES)
def test_batch_level_codes_refuse_rows_alone_without_thresholds(name):
    activation, sae = built(name), made(name).eval()
    if isinstance(activation, Elementwise) or activation.penalty().scope == "token":
        assert sae.encode(rows(3)).shape == (3, D_SAE)
        return
    with pytest.raises(InvalidValue, match=r"none were calibrated.*freeze_thresholds"):
        sae.encode(rows(3))
    assert sae.freeze_thresholds(store(name)).encode(rows(3)).any()


@pytest.mark.parametrize("name", CODES)
def test_only_signed_codes_have_negative_entries_and_all_are_counted(name):
    sae, x = fitted(name), rows(100, seed=3)
    z = sae.encode(x)
    assert bool((z < 0).any()) is built(name).signed
    counter = FiringCounter(D_SAE)
    counter.add(Code.of(z))
    assert torch.equal(counter.fired, (z != 0).sum(0))
    assert torch.equal(counter.silent == 0, (z != 0).any(0))


@pytest.mark.parametrize("name", CODES)
def test_the_budget_is_kept_in_training(name):
    activation, sae = built(name), made(name).train()
    if not isinstance(activation, Selecting):
        assert (sae.encode(rows(BATCH)) == 0).any()
        return
    counts = sae.sparse_encode(rows(BATCH)).counts()
    assert int(counts.sum()) <= activation.k * BATCH
    if activation.penalty().scope == "token":
        assert int(counts.max()) <= activation.k


@pytest.mark.parametrize("name", CODES)
def test_weights_in_bfloat16_encode_and_decode(name):
    sae = fitted(name).bfloat16()
    out = sae(rows(20, seed=3))
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", CODES)
def test_settings_written_and_read_give_the_same_activation(name):
    written = json.loads(json.dumps(catalog.describe(built(name))))
    assert catalog.restore(written) == built(name)


# -- two processes ---------------------------------------------------------------------------------


def trained_by_steps(name: str, rank: int = 0, world: int = 1) -> dict[str, torch.Tensor]:
    """Returns weights, counters and steps of a training, in units of the training.

    Without AuxK: it is divided by a variance of each rank's own rows.
    """
    plan = SAETraining(**{**vars(TRAINING), "auxiliary": None})
    trainer, data = Trainer(made(name), plan), store(name)
    reader = data.reader(BATCH // world, plan.seed, rank, world)
    trainer.begin(data)
    for _ in range(STEPS):
        trainer.step(next(reader))
    counters = {f"counter of {key}": value for key, value in trainer.counter.state_dict().items()}
    steps = {"steps": torch.tensor(trainer.steps_done)}
    return {**weights(trainer.sae), **counters, **steps}


def stopped_and_resumed(folder: str) -> SparseAutoencoder:
    class Stopped(Exception):
        pass

    def stop(stage: str, done: int, steps: int) -> None:
        if done == 5:
            raise Stopped

    with pytest.raises(Stopped):
        fitted("mutual_choice", directory=folder, progress=stop)
    return fitted("mutual_choice", directory=folder)


def disagreement(rank: int) -> str:
    try:
        made("topk_sae", seed=rank).fit(store("topk_sae"), TRAINING)
    except InvalidValue as error:
        return str(error)
    return "no error"


def work(rank: int, folder: str) -> None:
    """The body of a process: every activation, written to a file."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found: dict[str, object] = {"disagreement": disagreement(rank)}
    for name in CODES:
        found[name] = trained_by_steps(name, rank, 2)
        # Only the first rank writes checkpoints, and all must wait for none.
        sae = fitted(name, directory=f"{folder}/{name}" if name == "topk_sae" else None)
        found[f"fit {name}"] = {**weights(sae), "fvu": torch.tensor(sae.report.fvu)}
        found[f"world {name}"] = sae.report.world
    found["resumed"] = weights(stopped_and_resumed(f"{folder}/stopped"))
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes found, by rank; they are started once for all activations."""
    return found_by_ranks(__file__, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", CODES)
def test_two_processes_end_with_the_same_weights_thresholds_counters_and_steps(name, ranks):
    first, second = ranks
    assert differing(first[name], second[name]) == []
    assert int(first[name]["steps"]) == STEPS
    assert differing(first[f"fit {name}"], second[f"fit {name}"]) == []
    assert first[f"world {name}"] == 2


@pytest.mark.parametrize("name", CODES)
def test_two_processes_give_what_one_gives_where_rows_are_alone(name, ranks):
    activation, alone = built(name), trained_by_steps(name)
    both = ranks[0][name]
    assert int(both["steps"]) == int(alone["steps"])
    assert int(both["counter of fired"].sum()) > 0
    if isinstance(activation, Selecting) and activation.penalty().scope != "token":
        return  # each rank selects within its own rows
    if activation.needs_gradient:
        return  # the first step scales gradients by each rank's own rows
    assert torch.equal(both["counter of silent"], alone["counter of silent"])
    for key, value in alone.items():
        torch.testing.assert_close(both[key], value, rtol=1e-4, atol=1e-5)


def test_two_processes_go_on_where_they_were_stopped(ranks):
    for found in ranks:
        whole = {k: v for k, v in found["fit mutual_choice"].items() if k != "fvu"}
        assert differing(found["resumed"], whole) == []


def test_ranks_with_other_weights_are_told_so(ranks):
    for found in ranks:
        assert "ranks disagree on the weights of 0" in found["disagreement"]
