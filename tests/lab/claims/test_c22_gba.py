"""Claim 22: its arms, TopK at the L0 of GBA, and what is measured of dictionaries."""

import pytest
import torch

from sparsecraft.lab.claims import c22_gba as c22
from sparsecraft.lab.claims import recovered_dictionaries as recovered
from sparsecraft.lab.claims.cells import Cell
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.sae import SparseAutoencoder

SETTINGS = {**c22._settings("smoke"), "rows": 600, "steps": 2, "model_steps": 1, "expansion": 1}


@pytest.mark.parametrize("kind", c22.PARTS)
def test_a_cell_gives_every_arm_its_metrics(kind):
    found = c22.measure(Cell(kind, 0, {**SETTINGS, "kind": kind}))
    arms = {key.partition(" | ")[0] for key in found}
    mixtures = {c22.GBA, c22.TOPK, c22.L1, *map(c22.ba, c22.BA_TARGETS)}
    real = {f"{c22.REAL} {name}" for name in (c22.GBA, c22.TOPK, c22.L1)}
    wanted = {
        "mixtures": mixtures,
        "equal frequencies": set(map(c22.resonance, c22.RATIOS)),
        c22.REAL: real,
    }
    assert arms == wanted[kind]
    for contrast in c22.STATED:
        for name in contrast.terms.keys() & arms:
            assert f"{name} | {contrast.metric}" in found


def test_every_stated_arm_belongs_to_some_part():
    arms = {c22.GBA, c22.TOPK, c22.ba(c22.BEST_BA), c22.resonance(c22.NEAR)}
    arms |= {c22.resonance(c22.BELOW), c22.resonance(c22.ABOVE)}
    arms |= {f"{c22.REAL} {c22.GBA}", f"{c22.REAL} {c22.TOPK}"}
    assert c22.BEST_BA in c22.BA_TARGETS
    assert {c22.BELOW, c22.NEAR, c22.ABOVE} <= set(c22.RATIOS)
    assert set().union(*(contrast.terms for contrast in c22.STATED)) == arms


def test_topk_uses_as_many_as_gba(monkeypatch):
    seen = []
    real = recovered.trained

    def watched(activation, *arguments):
        seen.append(activation)
        return real(activation, *arguments)

    monkeypatch.setattr(recovered, "trained", watched)
    x = c22.ZIPF.draw(600, 0).x
    found = recovered.rivals(recovered.adaptation(SETTINGS, 0.1, 0.01, 2), x, x, 0, SETTINGS)
    ks = [each.k for each in seen if isinstance(each, TopK)]
    assert ks == [round(found[c22.GBA]["L0"])] * 2


def test_the_true_dictionary_recovers_everything_and_agrees_with_itself():
    features, x = c22.EQUAL.directions(0), c22.EQUAL.draw(500, 0).x
    sae = SparseAutoencoder(64, 128, TopK(k=4), row_norm="unit")
    with torch.no_grad():
        sae.W_dec.copy_(features)
        sae.W_enc.copy_(features.T)
    assert recovered.facts(sae, x, features)[c22.RECOVERY] == 1.0
    assert recovered.agreement([sae, sae], x) == 1.0
    other = SparseAutoencoder(64, 128, TopK(k=4), row_norm="unit", seed=1)
    assert recovered.agreement([sae, other], x) < 0.1


def test_features_of_zipf_differ_thirtyfold_and_about_four_are_in_a_row():
    frequencies = c22.ZIPF.frequencies()
    assert float(frequencies[0] / frequencies[-1]) == pytest.approx(128**0.7, rel=1e-6)
    assert float(frequencies.sum()) == pytest.approx(4.0)
