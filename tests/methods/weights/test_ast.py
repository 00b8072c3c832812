"""AST: masked forward, annealed decay, Wanda's mask, the side branch in the finished model."""

import pytest
import torch
from torch import nn

from sparsecraft.core.catalog import build, describe, restore
from sparsecraft.core.errors import InvalidValue, MissingStatistic
from sparsecraft.core.kinds import Clock
from sparsecraft.methods.weights.ast import AST
from sparsecraft.model.adams import AdamS
from sparsecraft.model.pruning import prune
from sparsecraft.model.side_branch import SideBranchLinear
from sparsecraft.model.sparsifier import Sparsifier


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def trained(total=12, steps=None, **options):
    """Returns the sparsifier of a training, and the model."""
    model = network()
    sparsifier = Sparsifier(model, "ast", total_steps=total, **options)
    optimizer = AdamS(model.parameters(), lr=0.02, betas=(0.9, 0.95))
    sparsifier.attach(optimizer)
    for step in range(total if steps is None else steps):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), x[:, :4].argmax(1))
        (loss + sparsifier.loss()).backward()
        optimizer.step()
    return sparsifier, model


X = torch.randn(5, 8, generator=torch.Generator().manual_seed(99))


def test_it_computes_with_the_masked_weights_and_trains_all():
    sparsifier, model = trained(steps=3, mask_every=0, lam=0.0)
    twin = network()
    twin.load_state_dict(model.state_dict())
    sparsifier.mask.apply_(dict(twin.named_parameters()))
    assert torch.equal(model(X), twin(X))
    moved = model[0].weight.detach() != network()[0].weight
    awake = model[0].bias.detach() != network()[0].bias  # units that the data reach
    assert awake.sum() > 8
    assert torch.equal(moved.all(1), awake)


def test_the_decay_grows_and_then_stays():
    method = AST(lam=0.3, ramp=0.5, distillation=0.0)
    strengths = [
        pull.strength * pull.share for pull in (method.pull({}, Clock(s, 8)) for s in range(8))
    ]
    assert strengths == pytest.approx([0, 0.075, 0.15, 0.225, 0.3, 0.3, 0.3, 0.3])
    assert AST(lam=0.3, ramp=0.0, distillation=0.0).pull({}, Clock(0, 8)).share == 1
    # The paper's loss has a third of the task's: everything here is three times as large.
    assert AST(lam=0.3).pull({}, Clock(7, 8)).strength == pytest.approx(0.9)


def test_a_stronger_decay_shrinks_masked_weights_more():
    sizes = []
    for lam in (0.0, 1.0):
        sparsifier, model = trained(total=40, lam=lam, mask_every=0)
        sizes.append(float(model[0].weight.detach()[~sparsifier.mask["0.weight"]].abs().mean()))
    assert sizes[1] < 0.5 * sizes[0]


def test_a_plain_finish():
    sparsifier, model = trained()
    before = model(X).detach()
    report = sparsifier.finalize()
    assert report.form == "plain"
    assert report.model is model
    assert report.sparsity == 0.5
    torch.testing.assert_close(model(X), before)
    assert all((mask.view(-1, 4).sum(1) == 2).all() for mask in report.mask.values())


@pytest.mark.parametrize("train_projection", [False, True])
@pytest.mark.parametrize("start", ["mean", "sum", "xavier"])
def test_the_finished_model_has_the_side_branch(start, train_projection):
    options = {"side_inputs": 4, "side_start": start, "train_projection": train_projection}
    sparsifier, model = trained(**options)
    before = model(X).detach()
    masks = sparsifier.mask
    remarks = list(
        sparsifier.method.remarks(sparsifier.weights(), sparsifier.layers, Clock(12, 12))
    )
    report = sparsifier.finalize()
    assert report.form == "augmented"
    torch.testing.assert_close(report.model(X), before, rtol=1e-5, atol=1e-6)
    assert isinstance(report.model[0], SideBranchLinear)
    assert isinstance(model[0], nn.Linear)
    assert torch.equal(report.model[0].weight != 0, masks["0.weight"])
    extra = report.model[0].extra + report.model[2].extra
    projections = 8 * 2 + 16 * 4 if train_projection else 0
    assert extra == 16 * 2 + 4 * 4 + projections
    assert f"side branches add {extra} weights" in remarks[0]


def test_a_single_linear_layer_is_replaced():
    model = nn.Linear(8, 4)
    sparsifier = Sparsifier(model, AST(side_inputs=4, distillation=0.0), total_steps=1)
    report = sparsifier.finalize()
    assert isinstance(report.model, SideBranchLinear)
    assert torch.equal(report.model.weight == 0, ~report.mask["weight"])


def test_the_branch_begins_as_the_mean_of_what_was_pruned():
    sparsifier = Sparsifier(network(), "ast", total_steps=2, side_inputs=4)
    weight = sparsifier.weights()["0"].detach()
    pruned = weight.masked_fill(sparsifier.mask["0.weight"], 0)
    side = sparsifier.layers["0"].parameters["side"]
    torch.testing.assert_close(side.detach(), pruned.view(16, 2, 4).sum(-1) / 4)


def test_wandas_mask_comes_from_the_calibration_data():
    batches = [{"input": torch.randn(8, 8) * torch.arange(1.0, 9.0)}]
    sparsifier = Sparsifier(
        network(), "ast", total_steps=2, metric="wanda", mask_every=0, calibration=batches
    )
    expected = prune(network(), "wanda", pattern="2:4", calibration=batches).mask
    assert sparsifier.mask == expected
    assert torch.equal(sparsifier.model[0].weight, network()[0].weight)  # the weights live on
    with pytest.raises(MissingStatistic):
        Sparsifier(network(), "ast", total_steps=2, metric="wanda", mask_every=0)


def test_wandas_mask_is_renewed_with_the_inputs_of_the_step():
    scale = torch.arange(1.0, 9.0)
    batches = [{"input": torch.ones(8, 8)}]
    sparsifier = Sparsifier(
        network(), "ast", total_steps=6, metric="wanda", mask_every=2, calibration=batches, lam=0.0
    )
    first = sparsifier.mask
    optimizer = AdamS(sparsifier.model.parameters(), lr=1e-9)
    sparsifier.attach(optimizer)
    for step in range(2):
        for part in torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(step)):
            (sparsifier.model.train()(part * scale).square().sum() + sparsifier.loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
    x = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1)).flatten(0, 1) * scale
    scores = sparsifier.weights()["0"].detach().abs() * x.square().sum(0).sqrt()
    expected = torch.zeros(16, 2, 4, dtype=torch.bool)
    expected.scatter_(-1, scores.view(16, 2, 4).topk(2, dim=-1).indices, True)
    assert torch.equal(sparsifier.mask["0.weight"], expected.view(16, 8))
    assert sparsifier.mask != first


def test_it_is_described():
    method = build("ast", side_inputs=4, metric="wanda", mask_every=0, lam=1e-3)
    assert restore(describe(method)) == method


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": -1.0}, "lambda is at least 0"),
        ({"ramp": 1.5}, "a share of the training"),
        ({"metric": "sparsegpt"}, 'not one of "magnitude", "wanda"'),
        ({"side_start": "zero"}, "mean, sum or xavier"),
        ({"side_inputs": -1}, "side_inputs=-1"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(InvalidValue, match=message):
        AST(**options)


def test_where_no_side_branch_can_stand():
    with pytest.raises(InvalidValue, match="0: a side branch that sums 3 inputs"):
        Sparsifier(network(), "ast", total_steps=2, side_inputs=3)
    with pytest.raises(InvalidValue, match=r"stands beside nn\.Linear only"):
        Sparsifier(nn.Conv2d(4, 4, 3), "ast", total_steps=2, side_inputs=2)
