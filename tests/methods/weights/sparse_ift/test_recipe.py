"""The recipe: transform, train through the caller's training, finish."""

import json

import pytest
import torch
from tests.models import tiny_cnn
from torch import nn

from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.methods.weights.sparse_ift import DopedLayer, SparseIFT
from sparsecraft.model.flops import count_flops

X = torch.zeros(1, 3, 8, 8)
STEPS = 60


class Training:
    """Takes STEPS steps on random labels, as a user's loop would."""

    def __init__(self):
        self.branches = []
        self.losses = []

    def __call__(self, model, mask=None, *, branch, sparsifier=None):
        self.branches.append(branch)
        draw = torch.Generator().manual_seed(0)
        images = torch.randn(32, 3, 8, 8, generator=draw)
        labels = torch.randint(0, 5, (32,), generator=draw)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        if sparsifier is not None:
            sparsifier(STEPS).attach(optimizer)
        model.train()
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            self.losses.append(loss.item())


@pytest.mark.parametrize("family", ["wide", "parallel", "factorized", "doped"])
def test_it_trains_sparse_at_the_cost_of_the_dense_model(family):
    training = Training()
    outcome = SparseIFT(family=family, sparsity=0.75).run(tiny_cnn(), training, example_input=X)
    assert training.branches == ["sparse"]
    assert training.losses[-1] < training.losses[0] / 2
    report = outcome.training
    report.mask.verify(dict(outcome.model.named_parameters()))
    assert set(report.mask) == set(outcome.transformation.targets)
    assert report.sparsity == pytest.approx(outcome.transformation.sparsity, abs=2e-3)
    flops = count_flops(outcome.model, X, mask=report.mask)
    assert flops == pytest.approx(count_flops(tiny_cnn(), X), rel=5e-3)
    assert report.itop > 1 - report.sparsity + 0.01  # RigL moved the mask
    assert report.method.info.name == "rigl"


def test_the_low_rank_term_stays_dense_while_w_trains_sparse():
    outcome = SparseIFT(family="doped", sparsity=0.75).run(tiny_cnn(), Training(), example_input=X)
    layer = outcome.model[3]
    assert isinstance(layer, DopedLayer)
    assert bool((layer.U.weight != 0).all()) and bool((layer.V.weight != 0).all())


@pytest.mark.parametrize("name", ["set", "static"])
def test_other_trainings_get_the_solved_sparsity_and_the_allocation(name):
    recipe = SparseIFT(sparsity=0.5, training=catalog.build(name))
    outcome = recipe.run(tiny_cnn(), Training(), example_input=X)
    assert outcome.training.method.info.name == name
    found = outcome.training.mask.densities
    for target, density in outcome.transformation.densities.items():
        assert found[target] == pytest.approx(density, abs=2e-3)


def test_without_anything_to_mask_the_training_is_dense():
    for options in ({"sparsity": 0.0}, {"family": "wide_factorized"}):
        outcome = SparseIFT(**options).run(tiny_cnn(), Training(), example_input=X)
        assert outcome.training is None


def test_a_training_that_forgets_the_masks_is_told():
    with pytest.raises(InvalidValue, match=r"did not call sparsifier\(total_steps\)"):
        SparseIFT().run(tiny_cnn(), lambda model, **_: None, example_input=X)


def test_one_seed_gives_one_result():
    first, again = (
        SparseIFT(seed=3).run(tiny_cnn(), Training(), example_input=X).model for _ in range(2)
    )
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("options", [{}, {"training": "set"}, {"family": "doped"}])
def test_settings_written_and_read_give_the_same_recipe(options):
    recipe = catalog.build("sparse_ift", sparsity=0.9, **options)
    assert catalog.restore(json.loads(json.dumps(catalog.describe(recipe)))) == recipe


def test_bad_settings():
    with pytest.raises(UnknownName, match="Unknown family 'wider'"):
        SparseIFT(family="wider")
    with pytest.raises(InvalidValue, match=r"sparsity=1"):
        SparseIFT(sparsity=1)
    with pytest.raises(InvalidValue, match="Magnitude cannot train a transformed model"):
        SparseIFT(training=catalog.build("magnitude"))
