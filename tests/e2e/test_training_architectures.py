"""Every architecture trains under a frozen and a live method and ends with exact zeros."""

import pytest
import torch
from tests.models import ARCHITECTURES, batches_for

from sparsecraft import Sparsifier
from sparsecraft.core.patterns import NM

STEPS = 4


def train(model, method, **options):
    sparsifier = Sparsifier(model, method, total_steps=STEPS, **options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    sparsifier.attach(optimizer)
    model.train()
    batch = batches_for(model, count=1)[0]
    for _ in range(STEPS):
        optimizer.zero_grad()
        output = model(**batch)
        shown = output.logits if "logits" in output else output.last_hidden_state
        (shown.square().mean() + sparsifier.loss()).backward()
        optimizer.step()
    return sparsifier.finalize()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_dynamic_masks(name):
    model = ARCHITECTURES[name]()
    keys = model.state_dict().keys()
    report = train(model, "rigl", sparsity=0.75, every=2)
    assert report.sparsity == pytest.approx(0.75, abs=1e-3)
    assert report.itop > 0.25
    assert model.state_dict().keys() == keys
    report.mask.verify(dict(model.named_parameters()))
    assert {row.name for row in report.targets.rows} == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_two_of_four_by_straight_through(name):
    model = ARCHITECTURES[name]()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    report = train(model, "ste", pattern=NM(2, 4))
    assert report.sparsity == 0.5
    parameters = dict(model.named_parameters())
    for target in report.targets:
        kept = target.matrix(parameters[target.parameter]) != 0
        assert (kept.reshape(-1, 4).sum(1) <= 2).all(), target.name
    moved = [n for n in report.mask if not torch.equal(parameters[n] != 0, before[n] != 0)]
    assert moved == list(report.mask)
