"""MaskSparsity and network slimming: what is pressed down, when, what is left, what is refused."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue, NoMatch, NonFinite, SparsityError, UnknownName
from sparsecraft.methods.weights.mask_sparsity import MaskSparsity
from sparsecraft.methods.weights.network_slimming import NetworkSlimming
from sparsecraft.model.channel_choice import channel_mask
from sparsecraft.model.channels import prune_channels
from sparsecraft.model.sparsifier import Sparsifier

SCALES = {"1": [0.9, 0.1, -0.8, 0.05], "4": [0.7, 1.1, 0.02, -0.6, 0.3, 0.01]}
KEEP = {"1": [True, False, True, False], "4": [True, True, False, True, False, False]}


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip
    with torch.no_grad():
        for name, values in SCALES.items():
            model.get_submodule(name).weight.copy_(torch.tensor(values))
    return model


IMAGES = torch.linspace(-2, 2, 12 * 36).sin().view(12, 1, 6, 6)
LABELS = torch.arange(12) % 3


def optimizer_of(model, **options):
    settings = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3, **options}
    return torch.optim.SGD(model.parameters(), **settings)


def trained(model, sparsifier, optimizer, steps):
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        (F.cross_entropy(model(IMAGES), LABELS) + sparsifier.loss()).backward()
        optimizer.step()


def scales(model):
    return {name: model.get_submodule(name).weight.detach() for name in SCALES}


@pytest.mark.parametrize("penalty", ["l1", "l2", "smooth_l1"])
def test_the_optimizer_treats_the_term_like_any_gradient(penalty):
    """Momentum, Nesterov and decay act on the sum: the same as adding the term to the loss."""
    model, twin = network(), network()
    optimizer, plain = optimizer_of(model), optimizer_of(twin)
    method = MaskSparsity(sparsity=0.5, strength=0.2, penalty=penalty)
    sparsifier = Sparsifier(model, method, total_steps=5).attach(optimizer)
    for name, layer in sparsifier.layers.items():
        assert (~layer.state["prune"]).tolist() == KEEP[name]
    trained(model, sparsifier, optimizer, 5)
    keep = {name: torch.tensor(values) for name, values in KEEP.items()}
    twin.train()
    for _ in range(5):
        plain.zero_grad()
        F.cross_entropy(twin(IMAGES), LABELS).backward()
        method.add_gradients(twin, keep, rate=0.1)
        plain.step()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_term_is_the_gradient_of_the_masked_l1_norm():
    model, twin = network(), network()
    F.cross_entropy(model(IMAGES), LABELS).backward()
    keep = {name: torch.tensor(values) for name, values in KEEP.items()}
    MaskSparsity(strength=0.2).add_gradients(model, keep)
    pressed = sum(twin.get_submodule(n).weight[~k].abs().sum() for n, k in keep.items())
    (F.cross_entropy(twin(IMAGES), LABELS) + 0.2 * pressed).backward()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=0)


def test_only_the_chosen_channels_go_to_zero():
    model = network()
    optimizer = optimizer_of(model, momentum=0.0, nesterov=False, weight_decay=0.0)
    method = MaskSparsity(sparsity=0.5, strength=0.5)
    sparsifier = Sparsifier(model, method, total_steps=30).attach(optimizer)
    trained(model, sparsifier, optimizer, 30)
    for name, values in scales(model).items():
        keep = torch.tensor(KEEP[name])
        assert float(values[~keep].abs().max()) < 0.15  # l1 swings by rate * strength
        assert float(values[keep].abs().min()) > 0.3
    assert sparsifier.mask.numel == 0  # nothing is masked while it trains
    report = sparsifier.finalize()
    assert report.sparsity == 0.5 == report.asked and not report.notes
    assert {n.removesuffix(".weight"): k.tolist() for n, k in report.mask.items()} == KEEP
    for name, values in scales(model).items():
        assert values[~torch.tensor(KEEP[name])].tolist() == [0.0] * KEEP[name].count(False)
    smaller, _ = prune_channels(model, report.mask, absorb_bias=True, example_input=IMAGES)
    assert (smaller[0].out_channels, smaller[3].out_channels) == (2, 3)
    model.eval()
    smaller.eval()
    # The last layer is linear and the pooled constants are exact; borders err in between only.
    assert (model(IMAGES) - smaller(IMAGES)).abs().mean() < 0.1 * model(IMAGES).abs().mean()


def test_exported_in_the_middle_has_the_channels_at_zero():
    model = network()
    optimizer = optimizer_of(model)
    sparsifier = Sparsifier(model, MaskSparsity(sparsity=0.5), total_steps=3).attach(optimizer)
    trained(model, sparsifier, optimizer, 2)
    assert (sparsifier.export_state_dict()["1.weight"] == 0).tolist() == [False, True, False, True]
    assert bool((model[1].weight != 0).all())


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"rule": "threshold", "threshold": 0.05}, ["1110", "110110"]),
        ({"rule": "ratio", "sparsity": 0.5}, ["1010", "110100"]),
        ({"rule": "energy", "energy": 0.1}, ["1010", "110100"]),
        ({"rule": "quantile", "sparsity": 0.8}, ["1000", "010000"]),
        ({"rule": "threshold", "threshold": 5.0, "minimum": 2}, ["1010", "110000"]),
    ],
)
def test_every_rule_decides_at_the_start(options, kept):
    sparsifier = Sparsifier(network(), MaskSparsity(**options), total_steps=1)
    found = [
        "".join(str(int(not gone)) for gone in layer.state["prune"].tolist())
        for layer in sparsifier.layers.values()
    ]
    assert found == kept


def test_masks_may_be_given_and_layers_left_out_are_free():
    model = network()
    mask = channel_mask(model, "ratio", sparsity=0.5, example_input=IMAGES)
    method = MaskSparsity(masks=mask, strength=0.3)
    assert method.masks == KEEP and method.density is None
    assert catalog.restore(json.loads(json.dumps(catalog.describe(method)))) == method
    alone = MaskSparsity(masks={"4": KEEP["4"]})
    sparsifier = Sparsifier(model, alone, total_steps=1).attach(optimizer_of(model))
    assert not bool(sparsifier.layers["1"].state["prune"].any())
    report = sparsifier.finalize()
    assert report.mask.kept == 4 + 3 and report.asked is None


def test_a_resumed_training_is_the_uninterrupted_one():
    model = network()
    optimizer = optimizer_of(model)
    method = MaskSparsity(sparsity=0.5, strength=0.3, penalty="smooth_l1")
    sparsifier = Sparsifier(model, method, total_steps=8).attach(optimizer)
    trained(model, sparsifier, optimizer, 4)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    trained(model, sparsifier, optimizer, 4)
    # Another start: the mask must come from the checkpoint, not from these scales.
    other = network()
    with torch.no_grad():
        other[1].weight.copy_(torch.tensor([0.1, 0.9, 0.1, 0.9]))
    again = optimizer_of(other)
    resumed = Sparsifier(other, method, total_steps=8).attach(again)
    other.load_state_dict(saved[0])
    again.load_state_dict(saved[1])
    resumed.load_state_dict(saved[2])
    trained(other, resumed, again, 4)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert resumed.finalize().mask == sparsifier.finalize().mask


def test_a_normalisation_with_frozen_statistics_is_pressed_all_the_same():
    model = network()
    optimizer = optimizer_of(model)
    method = MaskSparsity(sparsity=0.5, strength=0.5)
    Sparsifier(model, method, total_steps=10).attach(optimizer)
    model.train()
    model[1].eval()
    statistics = model[1].running_mean.clone()
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(model(IMAGES), LABELS).backward()
        optimizer.step()
    assert torch.equal(model[1].running_mean, statistics)
    pressed, free, *_ = model[1].weight.detach()[[1, 0]].abs().tolist()
    assert pressed < 0.5 < free


@pytest.mark.parametrize("penalty", ["l1", "l2", "smooth_l1", "small_l2"])
def test_slimming_presses_on_everything_and_chooses_at_the_end(penalty):
    model, twin = network(), network()
    optimizer, plain = optimizer_of(model), optimizer_of(twin)
    method = NetworkSlimming(sparsity=0.5, strength=0.1, penalty=penalty)
    sparsifier = Sparsifier(model, method, total_steps=6).attach(optimizer)
    trained(model, sparsifier, optimizer, 6)
    twin.train()
    for _ in range(6):
        plain.zero_grad()
        F.cross_entropy(twin(IMAGES), LABELS).backward()
        method.add_gradients(twin, rate=0.1)
        plain.step()
    assert torch.equal(model[4].weight, twin[4].weight)
    sizes = torch.cat([values.abs() for values in scales(model).values()])
    report = sparsifier.finalize()
    kept = torch.cat(list(report.mask.values()))
    assert int(kept.sum()) == 5
    assert sizes[kept].min() >= sizes[~kept].max()


def test_slimming_holds_back_what_masked_sparsity_leaves_free():
    kept = {}
    for method in (
        MaskSparsity(sparsity=0.5, strength=0.3),
        NetworkSlimming(sparsity=0.5, strength=0.3),
    ):
        model = network()
        optimizer = optimizer_of(model)
        sparsifier = Sparsifier(model, method, total_steps=20).attach(optimizer)
        trained(model, sparsifier, optimizer, 20)
        kept[method.info.name] = float(scales(model)["4"][torch.tensor(KEEP["4"])].abs().mean())
    assert kept["mask_sparsity"] > 1.5 * kept["network_slimming"]


def test_masks_that_do_not_fit_are_refused():
    def start(masks):
        Sparsifier(network(), MaskSparsity(masks=masks), total_steps=1)

    with pytest.raises(InvalidValue, match=r"1: the mask is torch.bool of shape \(2,\)"):
        start({"1": [True, False]})
    with pytest.raises(UnknownName, match="targeted BatchNorm layer '7'"):
        start({"7": [True, False]})
    with pytest.raises(InvalidValue, match="True for each channel"):
        start({"1": [0, 1, 1, 0]})
    with pytest.raises(UnknownName, match="BatchNorm layer 'norm'"):
        MaskSparsity().add_gradients(network(), {"norm": torch.ones(4, dtype=torch.bool)})


def test_gradients_must_be_there():
    with pytest.raises(InvalidValue, match="after backward"):
        NetworkSlimming().add_gradients(network())
    model = network()
    F.cross_entropy(model(IMAGES), LABELS).backward()
    with pytest.raises(InvalidValue, match="needs the learning rate"):
        NetworkSlimming(penalty="smooth_l1").add_gradients(model)
    with torch.no_grad():
        model[1].weight[0] = float("nan")
    with pytest.raises(NonFinite, match="1: the scale"):
        NetworkSlimming().add_gradients(model)
    with pytest.raises(NonFinite, match="1: the scale"):
        Sparsifier(model, "mask_sparsity", total_steps=1)


@pytest.mark.parametrize(
    "options",
    [
        {"penalty": "l3"}, {"rule": "median"}, {"strength": -1.0}, {"sparsity": 1.0},
        {"energy": 0.0}, {"threshold": -0.1}, {"minimum": -1},
    ],
)  # fmt: skip
def test_settings_are_checked(options):
    for cls in (MaskSparsity, NetworkSlimming):
        with pytest.raises(SparsityError):
            cls(**options)


def test_a_network_without_batch_normalisation_is_refused():
    with pytest.raises(NoMatch, match="no BatchNorm"):
        Sparsifier(nn.Sequential(nn.Linear(2, 2)), "mask_sparsity", total_steps=1)
