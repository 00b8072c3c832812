"""Every method of the catalog through the same laws."""

from __future__ import annotations

import copy
import hashlib
import json
import subprocess
import sys

import pytest
import torch
from tests.models import Blocks
from torch import nn

from sparsecraft.core import catalog
from sparsecraft.core.kinds import Layerwise, ModelWide
from sparsecraft.core.mask import Mask
from sparsecraft.model.frozen import hold_mask
from sparsecraft.model.packed import pack_state, unpack_state
from sparsecraft.model.pruning import PruneReport, prune

WEIGHT_METHODS = [
    name for name in catalog.names() if issubclass(catalog.get(name).cls, Layerwise | ModelWide)
]


def data() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        {"x": torch.randn(8, 5, 16, generator=generator), "labels": torch.arange(8) % 4}
        for _ in range(4)
    ]


def pruned(
    name: str, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, PruneReport]:
    model = Blocks().to(dtype)
    batches = [{**batch, "x": batch["x"].to(dtype)} for batch in data()]
    return model, prune(model, name, sparsity=0.5, calibration=batches, seed=seed)


def fingerprint(mask: Mask) -> str:
    bits, _ = mask.packed()
    digest = hashlib.sha256()
    for name in sorted(bits):
        digest.update(name.encode() + bits[name].numpy().tobytes())
    return digest.hexdigest()


def fingerprints() -> dict[str, str]:
    torch.set_num_threads(1)
    return {name: fingerprint(pruned(name)[1].mask) for name in WEIGHT_METHODS}


@pytest.mark.parametrize("name", WEIGHT_METHODS)
def test_what_is_asked_is_got(name):
    model, report = pruned(name)
    assert report.sparsity == pytest.approx(0.5, abs=1 / 8)
    assert report.sparsity == pytest.approx(0.5, abs=1e-3) or report.notes
    zeros = sum(int((model.get_parameter(n) == 0).sum()) for n in report.mask)
    assert zeros >= report.mask.numel - report.mask.kept
    report.mask.verify(dict(model.named_parameters()))


@pytest.mark.parametrize("name", WEIGHT_METHODS)
def test_one_seed_gives_one_result(name):
    (one, first), (two, second) = pruned(name, seed=7), pruned(name, seed=7)
    assert fingerprint(first.mask) == fingerprint(second.mask)
    for mine, theirs in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", WEIGHT_METHODS)
def test_keys_stay_and_the_model_copies_and_packs(name):
    model, report = pruned(name)
    assert model.state_dict().keys() == Blocks().state_dict().keys()
    twin = copy.deepcopy(model)
    x = data()[0]["x"]
    assert torch.equal(twin(x), model(x))
    state = unpack_state(*pack_state(model.state_dict()))
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert fingerprint(Mask.unpacked(*report.mask.packed())) == fingerprint(report.mask)


@pytest.mark.parametrize("name", WEIGHT_METHODS)
def test_bfloat16_models_are_pruned_in_their_own_dtype(name):
    model, report = pruned(name, dtype=torch.bfloat16)
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())
    assert report.sparsity == pytest.approx(0.5, abs=1e-3) or report.notes


@pytest.mark.parametrize("name", WEIGHT_METHODS)
def test_settings_written_and_read_give_the_same_method(name):
    method = catalog.build(name, sparsity=0.5)
    written = json.loads(json.dumps(catalog.describe(method)))
    assert catalog.restore(written) == method


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("name", WEIGHT_METHODS)
def test_pruned_weights_stay_dead_while_the_rest_trains(name, optimizer):
    model, report = pruned(name)
    chosen = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    }[optimizer](model.parameters())
    before = copy.deepcopy(model.state_dict())
    hold_mask(model, report.mask, chosen)
    for batch in data() * 2:
        chosen.zero_grad()
        nn.functional.cross_entropy(model(batch["x"]), batch["labels"]).backward()
        chosen.step()
        report.mask.verify(dict(model.named_parameters()))
    assert any(not torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_another_process_gives_the_same_masks():
    """One process for all methods: starting one costs more than the work."""
    done = subprocess.run(
        [sys.executable, "-c", f"import json; {_LOAD}; print(json.dumps(battery.fingerprints()))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == fingerprints()


_LOAD = (
    "import importlib.util as u; "
    f"spec = u.spec_from_file_location('battery', {__file__!r}); "
    "battery = u.module_from_spec(spec); spec.loader.exec_module(battery)"
)
