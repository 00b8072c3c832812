"""Every method that works while a model trains, through the same laws.

Two processes are started once and take every method through DDP and FSDP2; what they found is
compared with one process that sees both halves of every batch.
"""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.models import Blocks
from tests.two_processes import found_by_ranks
from torch import nn

from sparsecraft import Sparsifier
from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue, NoMatch
from sparsecraft.core.kinds import InTraining
from sparsecraft.model.digests import digest

STEPS = 10
TRAINED = [name for name in catalog.names() if issubclass(catalog.get(name).cls, InTraining)]
OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.005, weight_decay=0.1),
}


class Normed(nn.Module):
    """Convolutions with BatchNorm, on the same sequences; its statistics are held."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv1d(5, 12, 3, padding=1), nn.BatchNorm1d(12), nn.ReLU(),
            nn.Conv1d(12, 12, 3, padding=1), nn.BatchNorm1d(12), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(12, 4)

    def train(self, mode: bool = True) -> Normed:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()  # batch statistics would differ between ranks
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x).mean(-1))


class Attending(nn.Module):
    """A transformer layer and a head on the same sequences."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            [nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True)]
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


@cache
def built(name: str) -> InTraining:
    """Returns the method at half sparsity, its intervals short enough for ten steps."""
    options = catalog.get(name).options
    wanted = {"sparsity": 0.5, "every": 2, "mask_every": 2}
    given = {k: v for k, v in wanted.items() if k in options and options[k].type != "float"}
    try:
        return catalog.build(name, **given)
    except InvalidValue:
        given.pop("sparsity", None)  # its pattern says it
        return catalog.build(name, **given)


@cache
def kind_of_model(name: str) -> type[nn.Module]:
    """Returns the first model on which the method finds something to do."""
    for kind in (Attending,) if "attention" in built(name).captures else (Blocks, Normed):
        try:
            Sparsifier(kind(), built(name), total_steps=STEPS).detach()
        except NoMatch:
            continue
        return kind
    raise AssertionError(f"{name} finds nothing to do on any model of the battery")


def optimisers(name: str) -> list[str]:
    """Returns the optimisers with which the method is itself."""
    if built(name).optimizer_type is not None:
        return ["own"]
    fitting = []
    for each, make in OPTIMISERS.items():
        try:
            built(name).check_optimizer(make([nn.Parameter(torch.zeros(1))]))
        except InvalidValue:
            continue
        fitting.append(each)
    return fitting


def make_optimizer(name: str, chosen: str, model: nn.Module) -> torch.optim.Optimizer:
    if chosen == "own":
        return built(name).optimizer_type(model.parameters(), lr=0.005)
    return OPTIMISERS[chosen](model.parameters())


def data(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(100 + step)
    return torch.randn(8, 5, 16, generator=draw), torch.randint(4, (8,), generator=draw)


def begin(name: str, chosen: str | None = None, dtype: torch.dtype = torch.float32):
    model = kind_of_model(name)().to(dtype)
    sparsifier = Sparsifier(model, built(name), total_steps=STEPS, seed=3)
    optimizer = make_optimizer(name, chosen or optimisers(name)[0], model)
    return model, sparsifier, optimizer


def run(model, sparsifier, optimizer, first=0, last=STEPS, part=slice(None)):
    model.train()
    for step in range(first, last):
        x, y = data(step)
        optimizer.zero_grad()
        output = model(x[part].to(next(model.parameters()).dtype))
        (F.cross_entropy(output.float(), y[part]) + sparsifier.loss()).backward()
        optimizer.step()


def trained(name: str, chosen: str | None = None, dtype: torch.dtype = torch.float32):
    model, sparsifier, optimizer = begin(name, chosen, dtype)
    sparsifier.attach(optimizer)
    run(model, sparsifier, optimizer)
    return model, sparsifier, optimizer


def assert_same(one, other):
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]), key


@pytest.mark.parametrize("name", TRAINED)
def test_what_is_asked_is_got_and_what_is_masked_is_zero(name):
    model, sparsifier, _ = trained(name)
    keys = kind_of_model(name)().state_dict().keys()
    assert model.state_dict().keys() == keys
    report = sparsifier.finalize()
    if report.form == "plain":
        assert report.model.state_dict().keys() == keys
    if report.asked is not None:
        assert report.sparsity == pytest.approx(report.asked, abs=2e-2) or report.notes
    report.mask.verify(dict(model.named_parameters()))
    x, _ = data(0)
    with torch.no_grad():
        assert torch.isfinite(report.model.eval()(x)).all()
    json.dumps(report.to_json())


@pytest.mark.parametrize("name", TRAINED)
def test_the_model_moved_and_one_seed_gives_one_result(name):
    (one, first, _), (two, second, _) = trained(name), trained(name)
    assert_same(one.state_dict(), two.state_dict())
    assert first.mask == second.mask
    fresh = kind_of_model(name)().state_dict()
    assert any(not torch.equal(value, fresh[key]) for key, value in one.state_dict().items())


@pytest.mark.parametrize("name", TRAINED)
def test_saved_and_resumed_equals_uninterrupted(name):
    model, sparsifier, optimizer = begin(name)
    sparsifier.attach(optimizer)
    run(model, sparsifier, optimizer, 0, 5)
    saved = copy.deepcopy((sparsifier.state_dict(), model.state_dict(), optimizer.state_dict()))
    run(model, sparsifier, optimizer, 5)

    again, resumed, other = begin(name)
    resumed.attach(other)
    resumed.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    other.load_state_dict(saved[2])
    run(again, resumed, other, 5)
    assert_same(again.state_dict(), model.state_dict())
    assert resumed.mask == sparsifier.mask
    first, second = sparsifier.finalize(), resumed.finalize()
    assert_same(second.model.state_dict(), first.model.state_dict())


@pytest.mark.parametrize("name", TRAINED)
def test_a_copy_computes_the_same_and_an_export_in_between_changes_nothing(name):
    model, sparsifier, optimizer = begin(name)
    sparsifier.attach(optimizer)
    run(model, sparsifier, optimizer, 0, 3)
    x, _ = data(0)
    model.eval()
    assert torch.equal(copy.deepcopy(model)(x), model(x))
    raw = copy.deepcopy(model.state_dict())
    exported = sparsifier.export_state_dict()
    assert exported.keys() == raw.keys()
    assert_same(model.state_dict(), raw)


@pytest.mark.parametrize("chosen", [*OPTIMISERS, "own"])
@pytest.mark.parametrize("name", TRAINED)
def test_masked_weights_follow_their_law(name, chosen):
    if chosen not in optimisers(name):
        assert built(name).optimizer_type or chosen == "own" or optimisers(name)
        return
    model, sparsifier, optimizer = begin(name, chosen)
    sparsifier.attach(optimizer)
    frozen = built(name).masked_weights == "frozen"
    for step in range(STEPS):
        run(model, sparsifier, optimizer, step, step + 1)
        if not frozen:
            continue
        mask = sparsifier.mask
        mask.verify(dict(model.named_parameters()))
        for key, keep in mask.items():
            for value in optimizer.state[model.get_parameter(key)].values():
                if isinstance(value, torch.Tensor) and value.shape == keep.shape:
                    assert (value[~keep] == 0).all()
    report = sparsifier.finalize()
    report.mask.verify(dict(model.named_parameters()))


@pytest.mark.parametrize("name", TRAINED)
def test_bfloat16_models_train_in_their_own_dtype(name):
    try:
        model, sparsifier, _ = trained(name, dtype=torch.bfloat16)
    except InvalidValue as error:
        assert "bfloat16" in str(error)  # a method may say that it needs more precision
        return
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    report = sparsifier.finalize()
    report.mask.verify(dict(model.named_parameters()))


@pytest.mark.parametrize("name", TRAINED)
def test_settings_written_and_read_give_the_same_method(name):
    written = json.loads(json.dumps(catalog.describe(built(name))))
    assert catalog.restore(written) == built(name)


# -- two processes ---------------------------------------------------------------------------------


def distributed(name: str, wrapper: str, rank: int) -> dict[str, torch.Tensor]:
    """Returns whole exported weights and masks of a training on this rank's half of the data."""
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    from sparsecraft.model.sharding import whole

    model = kind_of_model(name)()
    teacher = copy.deepcopy(model)
    sparsifier = Sparsifier(model, built(name), total_steps=STEPS, seed=3, teacher=teacher)
    wrapped = model
    if wrapper == "ddp":
        wrapped = DistributedDataParallel(model)
    else:
        for child in model.children():
            if not isinstance(child, nn.ModuleList):
                fully_shard(child)
            for block in child if isinstance(child, nn.ModuleList) else ():
                fully_shard(block)
        fully_shard(model)
    optimizer = make_optimizer(name, optimisers(name)[0], model)
    sparsifier.attach(optimizer)
    run(wrapped, sparsifier, optimizer, part=slice(4 * rank, 4 * rank + 4))
    report = sparsifier.finalize()
    found = {key: whole(p.detach()).clone() for key, p in model.named_parameters()}
    return {**found, **{f"mask of {key}": keep for key, keep in report.mask.items()}}


def work(rank: int, folder: str) -> None:
    """The body of a process: every method, both wrappers, written to a file."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    found: dict[str, object] = {}
    for name in TRAINED:
        for wrapper in ("ddp", "fsdp"):
            try:
                found[f"{name} {wrapper}"] = distributed(name, wrapper, rank)
            except Exception as error:
                # Both ranks meet the same error at the same call, or the other would wait.
                found[f"{name} {wrapper}"] = f"{type(error).__name__}: {error}"
    found["disagreement"] = disagreement(rank)
    torch.save(found, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()


def disagreement(rank: int) -> str:
    model = Blocks()
    sparsifier = Sparsifier(model, "static", sparsity=0.5, total_steps=STEPS, seed=rank)
    try:
        sparsifier.attach(OPTIMISERS["sgd"](model.parameters()))
    except InvalidValue as error:
        return str(error)
    return "no error"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What two processes found, by rank; they are started once for all methods."""
    return found_by_ranks(__file__, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", TRAINED)
def test_two_processes_have_one_mask_and_the_weights_of_one_process(name, wrapper, ranks):
    first, second = (found[f"{name} {wrapper}"] for found in ranks)
    assert not isinstance(first, str), first
    assert_same(first, second)
    model, sparsifier, _ = trained(name)
    report = sparsifier.finalize()
    masks = {f"mask of {key}": keep for key, keep in report.mask.items()}
    assert {key for key in first if key.startswith("mask of ")} == masks.keys()
    kept = {k: v for k, v in first.items() if k in masks}
    assert digest(sorted(kept.items())) == digest(sorted(masks.items()))
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(
            first[key],
            parameter.detach(),
            rtol=1e-5,
            atol=1e-5,
            msg=lambda m, key=key: f"{key}: {m}",
        )


def test_ranks_that_disagree_are_told_so(ranks):
    for found in ranks:
        assert "ranks disagree on the seed: rank 0 has 0, rank 1 has 1" in found["disagreement"]
