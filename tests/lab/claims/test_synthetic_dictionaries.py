"""Mixtures with known directions, patches, and the controls that no training touches."""

import pytest
import torch

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.seeds import generator
from sparsecraft.lab.claims.dictionary_controls import principal_components, random_directions
from sparsecraft.lab.claims.image_patches import whitened_patches
from sparsecraft.lab.claims.synthetic_dictionaries import SparseMixture


def test_rows_are_sums_of_the_directions():
    mixture = SparseMixture(atoms=12, width=6, active=3, signed=True)
    drawn, directions = mixture.draw(500, seed=1), mixture.directions(1)
    assert torch.allclose(directions.norm(dim=1), torch.ones(12))
    assert torch.allclose(drawn.x, drawn.code @ directions)
    sizes = drawn.code[drawn.code != 0].abs()
    assert float(sizes.min()) >= 0.5 and float(sizes.max()) <= 1.5
    assert float((drawn.code > 0).double().mean()) == pytest.approx(1.5 / 12, abs=0.02)


def test_how_many_and_which():
    exact = SparseMixture(atoms=12, width=6, active=3, exact=True).draw(200, 0)
    assert exact.counts().tolist() == [3] * 200
    plain = SparseMixture(atoms=12, width=6, active=3).draw(4000, 0)
    assert float(plain.counts().double().mean()) == pytest.approx(3, abs=0.1)
    varied = SparseMixture(atoms=12, width=6, active=3, spread=0.9).draw(4000, 0)
    assert float(varied.counts().double().mean()) == pytest.approx(3, abs=0.15)
    assert varied.counts().double().var() > 1.3 * plain.counts().double().var()
    assert bool((plain.code >= 0).all())


def test_frequencies_follow_the_law():
    mixture = SparseMixture(atoms=20, width=6, active=4, exponent=1.0, offset=2.0)
    wanted = mixture.frequencies()
    assert float(wanted.sum()) == pytest.approx(4)
    seen = (mixture.draw(8000, 0).code != 0).double().mean(0)
    assert torch.allclose(seen, wanted, atol=0.03)
    assert wanted[0] / wanted[9] == pytest.approx(12 / 3)


def test_seeds_and_parts():
    mixture = SparseMixture(atoms=8, width=4, active=2, noise=0.1)
    assert torch.equal(mixture.draw(9, 0).x, mixture.draw(9, 0).x)
    assert not torch.equal(mixture.draw(9, 0).x, mixture.draw(9, 0, "test").x)
    assert not torch.equal(mixture.draw(9, 0).x, mixture.draw(9, 1).x)


def test_settings_that_are_not_allowed():
    with pytest.raises(InvalidValue, match="active=9 is not allowed"):
        SparseMixture(atoms=8, width=4, active=9)
    with pytest.raises(InvalidValue, match="spread=2 is not allowed"):
        SparseMixture(atoms=8, width=4, active=2, spread=2)
    with pytest.raises(InvalidValue, match="leave no room for spread"):
        SparseMixture(atoms=8, width=4, active=2, exact=True, spread=0.5)


def test_patches_have_no_mean_and_a_flat_spectrum():
    training, test = (whitened_patches(part, 400, seed=0) for part in ("training", "test"))
    assert training.shape == (400, 64)
    assert torch.allclose(training.mean(1), torch.zeros(400), atol=1e-5)
    assert torch.equal(training, whitened_patches("training", 400, seed=0))
    assert not torch.equal(training, test)


def test_principal_components_are_the_best_fixed_directions():
    x = torch.randn(400, 6, generator=generator(0, "x")) * torch.tensor([9.0, 5, 3, 1, 1, 1])
    variance = (x - x.mean(0)).square().sum(0).sort(descending=True).values
    found = principal_components(x, x, 2)
    assert 0 < found <= float(1 - variance[:2].sum() / variance.sum()) + 1e-6
    assert principal_components(x, x, 6) == pytest.approx(0, abs=1e-6)


def test_random_directions_are_solved_for():
    x = torch.randn(300, 6, generator=generator(1, "x")) + 5
    few, more = (random_directions(x, x, 40, k, seed=0) for k in (1, 3))
    assert 0 < more < few < 1
    assert random_directions(x, x, 6, 6, seed=0) == pytest.approx(0, abs=1e-4)
