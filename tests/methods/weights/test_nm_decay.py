"""MDGF and SDGF: phases, decays, changes of pattern, and the N:M weight at the end."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsecraft import Sparsifier
from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.kinds import Clock, TrainedLayer
from sparsecraft.core.patterns import NM, Unstructured
from sparsecraft.methods.weights.nm_decay import MDGF, SDGF
from sparsecraft.methods.weights.ste import STE

STEPS = 20


def weight(rows=4, columns=16):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(2))


def value(method, step, total=STEPS, raw=None):
    raw = weight() if raw is None else raw
    return method.forward(raw, TrainedLayer("a", tuple(raw.shape)), Clock(step, total))


def trained(method, steps=STEPS, taken=STEPS):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 8))
    sparsifier = Sparsifier(model, method, total_steps=steps, targets="Linear")
    adam = torch.optim.AdamW(model.parameters(), lr=0.01)
    sparsifier.attach(adam)
    draw = torch.Generator().manual_seed(1)
    for _ in range(taken):
        adam.zero_grad()
        x = torch.randn(16, 64, generator=draw)
        F.cross_entropy(model(x), torch.arange(16) % 8).backward()
        adam.step()
    return model, sparsifier


@pytest.mark.parametrize("decay", ["linear", "exponential"])
def test_a_mask_decay_begins_dense(decay):
    assert torch.equal(value(MDGF(pattern=NM(1, 16), decay=decay), 0), weight())


def test_masked_entries_are_multiplied_by_the_decay_and_kept_ones_by_nothing():
    method = MDGF(pattern=NM(1, 16), decay="linear", beta=0.1, finetune=0.0)
    keep = method.mask(weight(), NM(1, 16))
    found = value(method, 4)
    assert torch.equal(found[keep], weight()[keep])
    torch.testing.assert_close(found[~keep], weight()[~keep] * 0.6)


def test_the_gradient_is_the_identity_whatever_leaks():
    raw = weight().requires_grad_()
    upstream = torch.randn(4, 16)
    value(MDGF(pattern=NM(1, 16)), 7, raw=raw).backward(upstream)
    assert torch.equal(raw.grad, upstream)


def test_the_linear_decay_ends_as_ste():
    method = MDGF(pattern=NM(1, 16), decay="linear", beta=0.1, finetune=0.0)
    assert torch.equal(value(method, 10), value(STE(pattern=NM(1, 16)), 10))
    assert not torch.equal(value(method, 9), value(STE(pattern=NM(1, 16)), 9))


def test_three_phases():
    method = MDGF(pattern=NM(1, 16), dense=0.25, finetune=0.2, beta=0.1)
    layer = TrainedLayer("a", (4, 16))
    leaks = [method.leak(Clock(step, STEPS)) for step in range(STEPS)]
    assert leaks[:6] == [1.0] * 6
    assert leaks[5:16] == pytest.approx([math.exp(-0.1 * t) for t in range(11)])
    assert leaks[16:] == [0.0] * 4
    densities = [method.active_density(layer, Clock(step, STEPS)) for step in range(STEPS)]
    assert densities == [1.0] * 16 + [1 / 16] * 4
    assert value(method, 4) is not None and torch.equal(value(method, 4), weight())


@pytest.mark.parametrize("total", [20, 475, 10_000])
def test_by_default_beta_is_scaled_to_the_run(total):
    for decay, last in (("exponential", 4e-4), ("linear", 0.0)):
        method = MDGF(decay=decay)
        end = method.leak(Clock(int(0.9 * total) - 1, total))
        assert last <= end < 1.6e-3 if total < 475 and decay == "exponential" else end <= last
        assert method.leak(Clock(int(0.9 * total), total)) == 0


@pytest.mark.parametrize(
    "method",
    [
        MDGF(pattern=NM(1, 16), finetune=0.0, beta=1e-3),
        MDGF(pattern=NM(1, 16), decay="linear"),
        SDGF(pattern=NM(1, 16)),
        SDGF(pattern=NM(1, 8), schedule="geometric"),
        SDGF(pattern=NM(1, 8), schedule="densify", along="outputs", patterns={"2": "1:1"}),
        SDGF(pattern=NM(1, 16), decay="exponential", finetune=0.0),
    ],
)
def test_the_exported_weight_is_nm_however_much_leaks(method):
    model, sparsifier = trained(method)
    for layer, name in ((model[0], "0"), (model[2], "2")):
        target = method.pattern_of(name)
        with sparsifier.exported():
            axis = 0 if method.along == "outputs" else 1
            groups = (layer.weight.movedim(axis, -1).reshape(-1, target.of) != 0).sum(1)
            assert bool((groups == target.keep).all())
    assert bool((model[0].weight != 0).all())
    report = sparsifier.finalize()
    assert report.mask["0.weight"].sum() == model[0].weight.numel() * method.pattern.fixed_density


def test_what_leaks_is_not_what_is_exported():
    model, sparsifier = trained(MDGF(pattern=NM(1, 16), beta=1e-3), taken=10)
    x = torch.randn(8, 64)
    leaky = model(x)
    with sparsifier.exported():
        assert not torch.allclose(model(x), leaky, atol=0.1)
    assert torch.equal(model(x), leaky)


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("stepwise", ["15:16"] * 3 + ["8:16"] * 4 + ["4:16"] * 3 + ["2:16"] * 4 + ["1:16"] * 6),
        ("geometric", ["8:128"] * 4 + ["4:64"] * 5 + ["2:32"] * 4 + ["1:16"] * 7),
    ],
)
def test_the_pattern_follows_from_the_clock_alone(schedule, expected):
    method = SDGF(pattern=NM(1, 16), schedule=schedule)
    clocks = [Clock(step, STEPS) for step in range(STEPS)]
    assert [str(method.pattern_at(NM(1, 16), clock)) for clock in clocks] == expected
    raw = weight(2, 128)
    for step in (0, 7, 19):
        pattern = method.pattern_at(NM(1, 16), clocks[step])
        groups = (value(method, step, raw=raw).view(-1, pattern.of) != 0).sum(1)
        assert bool((groups == pattern.keep).all())


def test_a_structure_decay_waits_for_the_dense_phase():
    method = SDGF(pattern=NM(1, 16), dense=0.5)
    assert torch.equal(value(method, 9), weight())
    assert int((value(method, 10) != 0).sum()) == 60


def test_both_decays_together():
    method = SDGF(pattern=NM(1, 4), decay="linear", beta=0.05, finetune=0.0)
    raw = weight()
    keep = method.mask(raw, NM(2, 4))  # the second of three frames
    found = value(method, 8)
    torch.testing.assert_close(found, torch.where(keep, raw, raw * 0.6))


def test_custom_stages():
    method = SDGF(pattern=NM(1, 8), schedule="custom", stages={0: "4:8", 0.5: "2:8", 0.75: "1:8"})
    assert method.stages == ((0.0, "4:8"), (0.5, "2:8"), (0.75, "1:8"))
    patterns = [str(method.pattern_at(NM(1, 8), Clock(step, STEPS))) for step in range(STEPS)]
    assert patterns == ["4:8"] * 10 + ["2:8"] * 5 + ["1:8"] * 5


def test_layers_have_their_own_way_to_their_own_pattern():
    method = SDGF(pattern=NM(1, 16), patterns={"q": "2:4"})
    assert str(method.pattern_at(method.pattern_of("q"), Clock(0, STEPS))) == "3:4"
    assert str(method.pattern_at(method.pattern_of("fc1"), Clock(0, STEPS))) == "15:16"


def test_the_history_tells_the_densities():
    _, sparsifier = trained(SDGF(pattern=NM(1, 4), finetune=0.0))
    found = [(event.step, event.densities["0"]) for event in sparsifier.history]
    assert found == [(0, 0.75), (6, 0.5), (13, 0.25)]


def test_a_single_weight_decay():
    method = MDGF(pattern=Unstructured(), sparsity=0.9, decay="linear", beta=0.1)
    keep = method.mask(weight(), Unstructured())
    assert int(keep.sum()) == 6
    torch.testing.assert_close(value(method, 5)[~keep], weight()[~keep] * 0.5)


@pytest.mark.parametrize(
    "name, options",
    [
        ("mdgf", {"pattern": "1:16", "decay": "linear", "beta": 0.01, "dense": 0.1}),
        ("mdgf", {"pattern": "1:32", "patterns": {"*.q": "2:4"}}),
        ("sdgf", {"pattern": "1:16", "schedule": "geometric"}),
        ("sdgf", {"pattern": "2:8", "schedule": "custom", "stages": {0.0: "4:8", 0.5: "2:8"}}),
        ("sdgf", {"pattern": "2:8", "decay": "exponential", "beta": 0.1, "along": "outputs"}),
    ],
)
def test_settings_survive_json(name, options):
    method = catalog.build(name, **options)
    assert catalog.restore(json.loads(json.dumps(catalog.describe(method)))) == method


@pytest.mark.parametrize(
    "method, options, message",
    [
        (MDGF, {"beta": 0.0}, "beta above 0"),
        (MDGF, {"dense": 0.5, "finetune": 0.5}, "sum must be below 1"),
        (MDGF, {"finetune": -0.1}, "sum must be below 1"),
        (MDGF, {"decay": "step"}, "Unknown decay 'step'"),
        (SDGF, {"pattern": NM(1, 6)}, "6 / 1 is not a power of two"),
        (SDGF, {"patterns": {"0": "3:8"}}, "8 / 3 is not a power of two"),
        (SDGF, {"pattern": Unstructured(), "sparsity": 0.9}, "changes an N:M pattern"),
        (SDGF, {"schedule": "fine"}, "Unknown schedule 'fine'"),
        (SDGF, {"beta": 0.1}, "beside decay='step'"),
        (SDGF, {"schedule": "custom"}, r"custom stages \[\] do not end with the target 2:4"),
        (SDGF, {"schedule": "custom", "stages": {0: "1:4"}}, "do not end with the target 2:4"),
        (SDGF, {"schedule": "custom", "stages": {1.5: "2:4"}}, r"fractions .* in \[0, 1\)"),
        (SDGF, {"schedule": "custom", "stages": {0: "row"}}, "row is not an N:M pattern"),
        (SDGF, {"stages": {0: "2:4"}}, "beside schedule='stepwise'"),
    ],
)
def test_refusals(method, options, message):
    with pytest.raises((InvalidValue, UnknownName), match=message):
        method(**options)


def test_the_largest_groups_must_divide_the_real_layers():
    model = nn.Linear(64, 32)
    with pytest.raises(InvalidValue, match="8:128, on the way to 1:16, needs a multiple of 128"):
        Sparsifier(model, SDGF(pattern=NM(1, 16), schedule="geometric"), total_steps=9)
    with pytest.raises(InvalidValue, match="needs a multiple of 64 outputs, but the layer has 32"):
        method = SDGF(pattern=NM(1, 8), schedule="geometric", along="outputs")
        Sparsifier(model, method, total_steps=9)
    Sparsifier(model, SDGF(pattern=NM(1, 8), schedule="geometric"), total_steps=9)
