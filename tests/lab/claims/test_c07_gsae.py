"""Claim 07: arms that differ in the choice alone, and what is measured of a dictionary."""

import pytest
import torch

from sparsecraft.lab.claims import c07_gsae as c07
from sparsecraft.lab.claims import gradient_dictionaries as dictionaries
from sparsecraft.lab.claims import source_bytes
from sparsecraft.lab.claims.cells import Cell
from sparsecraft.methods.codes.gradient_topk import GradientTopK
from sparsecraft.methods.codes.topk import TopK


@pytest.fixture(scope="module")
def subject():
    model = source_bytes.byte_model(2, 32, 0, 32)
    draw = torch.Generator().manual_seed(0)
    return dictionaries.Subject(
        model,
        "blocks.0",
        torch.randint(256, (12, 32), generator=draw),
        torch.randint(256, (6, 32), generator=draw),
    )


@pytest.mark.parametrize("budget", ["smoke", "small", "full"])
def test_every_stated_arm_is_run(budget):
    settings = c07._settings(budget)
    arms = {c07.arm(c07.SOURCE, name, k) for name in settings["arms"] for k in settings["ks"]}
    for contrast in c07.STATED:
        assert contrast.terms.keys() <= arms
        assert sum(contrast.terms.values()) == 0


def test_the_control_differs_from_the_method_in_its_gradients_alone():
    method, control = c07.ARMS[c07.GRADIENT], c07.ARMS[c07.SHUFFLED]
    assert {**method, "shuffle": True} == control
    assert dictionaries.method_of(method, 4) == dictionaries.method_of(control, 4)
    assert isinstance(dictionaries.method_of(method, 4), GradientTopK)
    assert dictionaries.method_of(c07.ARMS[c07.TOPK], 4) == TopK(k=4)


def test_stories_are_left_out_where_they_are_not(monkeypatch, tmp_path):
    monkeypatch.delenv("SPARSECRAFT_DATA", raising=False)
    assert c07._subjects("small") == (c07.SOURCE,)
    monkeypatch.setenv("SPARSECRAFT_DATA", str(tmp_path))
    assert c07._subjects("small") == (c07.SOURCE,)
    (tmp_path / "stories260k").mkdir()
    assert c07._subjects("small") == (c07.SOURCE, c07.STORIES)
    assert c07._subjects("smoke") == (c07.SOURCE,)


def test_gradients_are_those_of_the_summed_loss(subject):
    harvest = dictionaries.Harvest.of(subject, subject.test)
    x = harvest.x.view(6, 32, 32).clone().requires_grad_()
    with dictionaries.replaced(subject, x):
        logits = subject.model(input_ids=subject.test)
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), subject.test[:, 1:].flatten(), reduction="sum"
    )
    (wanted,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(harvest.gradient, wanted.flatten(0, 1), rtol=1e-4, atol=1e-6)
    # The last token of a window predicts nothing.
    assert not harvest.gradient.view(6, 32, 32)[:, -1].any()
    assert harvest.gradient.view(6, 32, 32)[:, :-1].any(2).all()


def test_a_perfect_reconstruction_does_no_damage(subject):
    x = dictionaries.Harvest.of(subject, subject.test).x
    clean = dictionaries.clean_logits(subject)
    kept = dictionaries.damage(subject, x, clean)
    assert kept["loss"] == pytest.approx(0, abs=1e-6)
    assert kept["kl"] == pytest.approx(0, abs=1e-6)
    lost = dictionaries.damage(subject, torch.zeros_like(x), clean)
    assert lost["kl"] > 0.01


def test_the_control_trains_on_other_gradients(subject):
    harvest = dictionaries.Harvest.of(subject, subject.train)
    settings = {"expansion": 2, "k": 2, "steps": 3, "batch": 64, "rate": 1e-2}
    arms = ({}, {"beta": 5.0}, {"beta": 5.0, "shuffle": True})
    plain, chosen, shuffled = (dictionaries.trained(a, harvest, 0, settings) for a in arms)
    again = dictionaries.trained(arms[1], harvest, 0, settings)
    assert torch.equal(chosen.W_dec, again.W_dec)
    assert not torch.equal(chosen.W_dec, shuffled.W_dec)
    assert not torch.equal(chosen.W_dec, plain.W_dec)


def test_steering_does_not_depend_on_the_norms_of_the_decoder(subject):
    harvest = dictionaries.Harvest.of(subject, subject.test)
    settings = {"expansion": 2, "k": 2, "steps": 1, "batch": 64, "rate": 1e-2}
    sae = dictionaries.trained({}, harvest, 0, settings)
    alive, options = torch.ones(64, dtype=torch.bool), {"steered": 5, "steered_windows": 2}
    one = dictionaries.steering(subject, sae, alive, harvest.x, 3, options)
    with torch.no_grad():
        sae.W_dec *= 7
    assert one > 0
    found = dictionaries.steering(subject, sae, alive, harvest.x, 3, options)
    assert found == pytest.approx(one, rel=1e-4)


def test_a_cell_gives_every_arm_its_metrics():
    few = {name: c07.ARMS[name] for name in (c07.TOPK, c07.ATTRIBUTION)}
    sizes = {"model_steps": 1, "windows": 8, "test_windows": 4, "steps": 2, "arms": few}
    settings = {**c07._settings("smoke"), **sizes, "subject": c07.SOURCE}
    found = c07.measure(Cell(c07.SOURCE, 0, settings))
    names = {key.partition(" | ")[0] for key in found}
    assert names == {c07.arm(c07.SOURCE, name) for name in few}
    for metric in (c07.LOSS, c07.STEERING, "dead share", "FVU, with gradients", "KL, plain"):
        assert f"{c07.arm(c07.SOURCE, c07.TOPK)} | {metric}" in found
    topk = c07.arm(c07.SOURCE, c07.TOPK)
    assert found[f"{topk} | FVU, plain"] == found[f"{topk} | FVU, with gradients"]
