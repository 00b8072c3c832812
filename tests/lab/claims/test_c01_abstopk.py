"""Claim 01: arms that the statements need, controls, and what one latent does for two poles."""

import pytest
import torch

from sparsecraft.lab.claims import c01_abstopk as c01
from sparsecraft.lab.claims.cells import Cell
from sparsecraft.lab.claims.synthetic_dictionaries import Mixture
from sparsecraft.methods.codes.abstopk import AbsTopK
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.sae import SparseAutoencoder

TINY = {"rows": 600, "training": {"steps": 2, "batch": 64}}


def arms(data, sizes):
    return {
        c01.arm(data, series, times * latents, k)
        for latents, k in sizes
        for series, times in (("topk", 1), ("topk", 2), ("abstopk", 1))
    }


@pytest.mark.parametrize("budget", ["small", "full"])
def test_every_stated_arm_is_run(budget):
    settings = c01._settings(budget)
    run = set().union(*(arms(data, each["sizes"]) for data, each in settings.items()))
    for contrast in c01.STATED:
        assert contrast.terms.keys() <= run
        assert sum(contrast.terms.values()) == pytest.approx(0)


def test_a_cell_gives_every_arm_its_metrics():
    found = c01.measure(Cell("bipolar", 0, {**TINY, "sizes": [[64, 4]]}))
    names = {name.rpartition(" | ")[0] for name in found if name.endswith(c01.METRIC)}
    controls = {"bipolar k=4: random, latents=64", "bipolar k=4: principal components"}
    assert names == arms("bipolar", [(64, 4)]) | controls
    assert found["bipolar: difference in means | poles told apart"] > 0.95
    assert found[f"{c01.stated_arm('bipolar', 'topk')} | both poles in one latent"] == 0


def test_a_dictionary_of_the_truth_holds_both_poles_in_one_latent():
    rows = c01.load("bipolar", seed=0, count=2000)
    signed = SparseAutoencoder(32, 64, AbsTopK(k=4), tied=True)
    mirrored = SparseAutoencoder(32, 128, TopK(k=4), tied=True)
    with torch.no_grad():
        signed.W_dec.copy_(rows.directions)
        mirrored.W_dec.copy_(torch.cat([rows.directions, -rows.directions]))
    of_signed, of_mirrored = c01.facts(signed, rows), c01.facts(mirrored, rows)
    assert of_signed[c01.METRIC] == pytest.approx(of_mirrored[c01.METRIC], abs=1e-5)
    assert of_signed["directions found"] == of_mirrored["directions found"] == 1
    assert (of_signed["directions stored twice"], of_mirrored["directions stored twice"]) == (0, 1)
    assert of_signed["both poles in one latent"] > 0.5
    assert of_mirrored["both poles in one latent"] == 0


def test_poles_are_rows_with_one_sign():
    positive, negative = c01._poles(Mixture(torch.zeros(3, 2), torch.tensor([[1.0], [0], [-1]])), 0)
    assert positive.tolist() == [True, False, False]
    assert negative.tolist() == [False, False, True]


def test_only_signed_mixtures_have_poles():
    assert c01.load("positive", 0, 100).signed is None
    assert c01.load("bipolar", 0, 100).signed is not None
