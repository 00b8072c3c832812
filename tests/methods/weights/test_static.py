"""A mask from any method, held; its shuffled control; static twins."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sparsecraft import Sparsifier
from sparsecraft.core import catalog
from sparsecraft.core.allocation import ERK, Uniform
from sparsecraft.core.errors import InvalidValue, MissingStatistic
from sparsecraft.core.patterns import NM, Unstructured
from sparsecraft.methods.weights.gradual_magnitude import GradualMagnitude
from sparsecraft.methods.weights.magnitude import GlobalMagnitude, Magnitude
from sparsecraft.methods.weights.random import Random
from sparsecraft.methods.weights.rigl import RigL
from sparsecraft.methods.weights.snip import SNIP
from sparsecraft.methods.weights.static import Static, static_twin
from sparsecraft.model.pruning import prune


class Network(nn.Module):
    """Two linear layers, from a fixed seed."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(32, 16), nn.Linear(16, 8)

    def forward(self, input):
        return self.second(torch.relu(self.first(input)))


def examples():
    draw = torch.Generator().manual_seed(1)
    return {"input": torch.randn(20, 32, generator=draw), "labels": torch.arange(20) % 8}


def trained(method, steps=4, **options):
    """Returns the initial mask, the report and the model."""
    model, batch = Network(), examples()
    sparsifier = Sparsifier(
        model, method, total_steps=steps, targets="Linear", calibration=[batch], **options
    )
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier.attach(sgd)
    first = sparsifier.mask
    for _ in range(steps):
        sgd.zero_grad()
        F.cross_entropy(model(batch["input"]), batch["labels"]).backward()
        sgd.step()
    return first, sparsifier.finalize(), model


def test_by_default_random_with_erk_densities():
    first, report, model = trained("static", sparsity=0.75)
    twin = Network()
    expected = prune(twin, Random(sparsity=0.75, allocation=ERK()), targets="Linear").mask
    assert first == expected == report.mask
    assert report.itop == pytest.approx(0.25)
    assert not torch.equal(model.first.weight, Network().first.weight)
    assert int((model.first.weight != 0).sum()) == int(first["first.weight"].sum())


@pytest.mark.parametrize("source", [SNIP(), GlobalMagnitude(), Magnitude()])
def test_the_mask_is_that_of_the_source(source):
    first, report, _ = trained(Static(source=source, sparsity=0.75))
    expected = prune(
        Network(), source.info.name, sparsity=0.75, targets="Linear", calibration=[examples()]
    )
    assert first == expected.mask == report.mask


def test_snip_under_an_nm_pattern():
    first, _, model = trained(Static(source=SNIP(), pattern=NM(1, 16)))
    for name, parameter in model.named_parameters():
        if name in first:
            groups = (parameter != 0).view(-1, 16).sum(1)
            assert bool((groups <= 1).all())
    batch = examples()
    network = Network()
    F.cross_entropy(network(batch["input"]), batch["labels"]).backward()
    scores = (network.first.weight * network.first.weight.grad).abs().view(-1, 16)
    best = F.one_hot(scores.argmax(1), 16).bool().view(16, 32)
    assert torch.equal(first["first.weight"], best)


def test_an_nm_pattern_takes_the_place_of_an_allocation():
    assert Static(pattern=NM(1, 4)).start() == Random(pattern=NM(1, 4), allocation=Uniform())
    first, _, _ = trained(Static(pattern=NM(1, 4)))
    assert bool((first["first.weight"].view(-1, 4).sum(1) == 1).all())


@pytest.mark.parametrize(
    "source", [SNIP(), GlobalMagnitude(), Magnitude(allocation=ERK()), Magnitude(pattern=NM(2, 8))]
)
def test_shuffling_keeps_counts_and_pattern_but_not_places(source):
    sparsity = None if source.pattern.fixed_density else 0.75
    plain, _, _ = trained(Static(source=source, sparsity=sparsity))
    shuffled, _, model = trained(Static(source=source, sparsity=sparsity, shuffled=True))
    for name, keep in plain.items():
        assert int(shuffled[name].sum()) == int(keep.sum())
    assert plain != shuffled
    # The survivors of the shuffled mask still have their own initial values to train from.
    assert int((model.first.weight != 0).sum()) == int(shuffled["first.weight"].sum())
    if source.pattern == NM(2, 8):
        assert bool((shuffled["first.weight"].view(-1, 8).sum(1) == 2).all())


def test_the_twin_starts_with_the_same_mask_and_keeps_it():
    dynamic = RigL(sparsity=0.75, every=1)
    started, moved, _ = trained(dynamic, steps=8)
    first, report, _ = trained(static_twin(dynamic), steps=8)
    assert first == started == report.mask
    assert moved.mask != started
    assert moved.itop > report.itop == pytest.approx(0.25)


def test_a_method_that_starts_dense_has_no_twin():
    with pytest.raises(InvalidValue, match="gradual_magnitude begins dense"):
        static_twin(GradualMagnitude())


def test_settings_survive_json():
    method = Static(source=SNIP(reinitialise=True), pattern=NM(1, 16), shuffled=True)
    assert catalog.restore(json.loads(json.dumps(catalog.describe(method)))) == method
    assert catalog.build("static", source="snip", sparsity=0.9).source == SNIP()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"sparsity": 0.5, "source": Random(sparsity=0.9)}, "sparsity=0.5 beside sparsity=0.9"),
        ({"pattern": NM(1, 4), "source": SNIP(pattern=NM(2, 4))}, "pattern=1:4 beside pattern=2:4"),
        ({"sparsity": 0.5, "source": Random(pattern=NM(1, 4))}, "contradicts the pattern"),
        ({"source": Magnitude(allocation=ERK()), "pattern": NM(1, 4)}, "allocation ERK"),
        ({"source": RigL()}, "Layerwise or ModelWide"),
        ({"shuffled": True}, "random already"),
        ({"sparsity": 90.0}, "write 0.9"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(InvalidValue, match=message):
        Static(**options)


def test_the_source_gets_its_data_or_says_so():
    with pytest.raises(MissingStatistic, match="calibration"):
        Sparsifier(Network(), Static(source=SNIP()), total_steps=3, targets="Linear")


def test_the_density_is_that_of_either():
    assert Static(source=Random(sparsity=0.9)).density == pytest.approx(0.1)
    assert Static(source=Random(), sparsity=0.9).density == pytest.approx(0.1)
    assert Static(pattern=Unstructured()).density == 0.5
