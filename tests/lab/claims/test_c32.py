"""Claim 32: its grid, its arms, and that they are at equal FLOPs."""

import pytest
import torch

from sparsecraft.core.errors import BudgetError

pytest.importorskip("skimage")

from sparsecraft.lab.claims import c32_sparse_ift as c32


@pytest.mark.parametrize("budget", ["small", "full"])
def test_the_grid_has_every_stated_arm_and_no_cell_twice(budget):
    arms = [cell.arm for cell in c32._grid(budget, 0)]
    assert len(set(arms)) == len(arms)
    for contrast in c32.STATED:
        assert contrast.terms.keys() <= set(arms)
        assert sum(contrast.terms.values()) == pytest.approx(0)


def test_full_contains_small():
    def keys(budget):
        return {(c.arm, str(sorted(c.settings.items()))) for c in c32._grid(budget, 0)}

    assert keys("small") < keys("full")


def test_arms_of_a_seed_share_their_patches_and_seeds_differ():
    first, again, other = c32.part("training", 0), c32.part("training", 0), c32.part("training", 1)
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (c32.TRAINING_PATCHES, 1, 16, 16)
    assert torch.equal(c32.part("test", 0).images, c32.part("test", 1).images)


@pytest.mark.parametrize("family", c32.FAMILIES)
def test_every_family_trains_at_equal_flops(family, monkeypatch):
    monkeypatch.setattr(c32, "TRAINING_PATCHES", 640)
    found = c32.measure(c32._transformed(family, "rigl", 0.75, 0, epochs=1))
    assert found["FLOPs over dense"] == pytest.approx(1, abs=c32.MOST_DIFFERENCE)
    assert found["training FLOPs over dense"] > 1
    assert found["ever active"] > found["always active"]


def test_static_starts_where_rigl_starts():
    masks = []
    for training in ("rigl", "static"):
        cell = c32._transformed("wide", training, 0.9, 3)
        example = c32.part("training", 3).images[:1]
        dense = c32.network(*c32.WIDTHS, seed=3)
        _, sparsifier = c32._arm(cell, dense, example, steps=100)
        masks.append(sparsifier.mask)
    assert masks[0] == masks[1]


def test_an_unequal_network_is_refused():
    with pytest.raises(BudgetError, match=r"1\.0200 times the FLOPs.*1% apart"):
        c32._check_equal("wide", 1.02)
