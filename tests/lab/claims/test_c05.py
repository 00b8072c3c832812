"""Claim 05: its grid, its curve, and that every arm is what its name says."""

from types import SimpleNamespace

import pytest
import torch

from sparsecraft.lab.claims import c05_lazy_neuron as c05
from sparsecraft.lab.claims import lazy_neurons, source_bytes
from sparsecraft.lab.claims.cells import Cell
from sparsecraft.lab.evidence.table import Row

SMALL = {cell.arm: cell for cell in c05._grid("small", 0)}


@pytest.fixture(autouse=True)
def few_bytes(monkeypatch):
    found = source_bytes.Source(*(torch.arange(4096) % 7 for _ in range(3)))
    monkeypatch.setattr(source_bytes, "load_source", lambda seed: found)


@pytest.mark.parametrize("budget", ["smoke", "small", "full"])
def test_no_arm_is_there_twice(budget):
    arms = [cell.arm for cell in c05._grid(budget, 0)]
    assert len(set(arms)) == len(arms)


@pytest.mark.parametrize("budget", ["small", "full"])
def test_the_grid_gives_every_stated_arm(budget):
    known = set()
    for cell in c05._grid(budget, 0):
        known |= {cell.arm, *(c05.at(cell.arm, mark) for mark in cell.settings.get("marks", ()))}
    for contrast in c05.STATED:
        assert contrast.terms.keys() <= known


def measured(arm, **changes):
    cell = SMALL[arm]
    return c05.measure(Cell(arm, 0, {**cell.settings, **changes}))


def test_byte_models_are_watched_before_during_and_after():
    found = measured("bytes m=256", hidden=16, steps=4, marks=[0, 2, 4])
    assert {f"non-zero share at step {step}" for step in (0, 2, 4)} <= found.keys()
    assert found["non-zero share at step 0"] == pytest.approx(0.5, abs=0.2)
    layers = [found[f"non-zero share of layer {index}, step 4"] for index in (0, 1)]
    assert sum(layers) / 2 == pytest.approx(found["non-zero share at step 4"])
    assert found["bits per byte"] > 0


@pytest.mark.parametrize("data", c05.DATA)
def test_the_mlp_learns_every_kind_of_data(data):
    found = measured(f"MLP {data}", hidden=32, steps=3, marks=[0, 3])
    assert found["non-zero share at step 0"] == pytest.approx(0.5, abs=0.15)
    assert found["non-zero share at step 3"] != found["non-zero share at step 0"]


def test_kinds_of_data_are_what_they_say():
    data = {kind: lazy_neurons._digit_batches(kind, 0)[0] for kind in c05.DATA}
    batches = {kind: draw(0) for kind, draw in data.items()}
    true_images, true_labels = batches["true labels"]
    assert torch.equal(batches["random labels"][0], true_images)
    assert (batches["random labels"][1] == true_labels).float().mean() < 0.3
    assert torch.equal(batches["random inputs"][1], true_labels)
    assert not torch.equal(batches["random inputs"][0], true_images)
    assert not torch.equal(batches["infinite data"][0], data["infinite data"](1)[0])


@pytest.mark.parametrize("arm", ["dense", "top-k 12 of 192", "narrow 12 of 192"])
def test_classifiers_are_measured(arm):
    found = measured(arm, epochs=1, rates=[1e-3])
    expected = {"dense": 0.5, "top-k 12 of 192": 12 / 192, "narrow 12 of 192": 0.5}[arm]
    assert found["active share"] == pytest.approx(expected, abs=0.05)
    assert 0 <= found[c05.AFTER_NOISE] <= 1
    assert found["learning rate"] == 1e-3


def test_random_entries_are_kept_anew_each_time_and_as_many():
    layer = lazy_neurons.RandomKept(3, seed=0)
    ones = torch.ones(50, 12)
    first, second = layer(ones), layer(ones)
    assert (first.sum(1) == 3).all()
    assert not torch.equal(first, second)
    assert torch.equal(lazy_neurons.RandomKept(3, seed=0)(ones), first)


def test_the_rate_is_chosen_on_clean_validation_and_kept_for_noisy_labels(monkeypatch):
    trained = []

    def classifier(settings, data, seed, rate):
        trained.append((rate, torch.equal(data.labels, true.train.labels)))
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10), torch.nn.ReLU())
        model.images = rate
        return model

    true = lazy_neurons.digits.load_digits(0)
    monkeypatch.setattr(lazy_neurons, "_classifier", classifier)
    monkeypatch.setattr(
        lazy_neurons.digits, "accuracy", lambda model, data: 1 - abs(model.images - 3e-3)
    )
    report = SimpleNamespace(nonzero=0.5, flops={"second": 2e6})
    monkeypatch.setattr(lazy_neurons.ActivationMonitor, "measure", lambda *_: report)
    found = measured("dense")
    assert found["learning rate"] == 3e-3
    assert found["second product, MFLOP"] == 2
    assert trained == [(1e-3, True), (3e-3, True), (3e-3, False)]


def test_shares_at_steps_lie_on_the_curve():
    row = Row("bytes m=256", 1, "non-zero share at step 50", 0.4)
    assert c05._on_the_curve(row) == Row("bytes m=256, step=50", 1, "non-zero share", 0.4)
    other = Row("dense", 1, "accuracy", 0.9)
    assert c05._on_the_curve(other) == other
