"""Statistics of batch normalisation, gathered anew."""

import pytest
import torch
from torch import nn

from sparsecraft.core.errors import InvalidValue, MissingStatistic
from sparsecraft.core.seeds import generator
from sparsecraft.model.batch_norm import has_batch_norm, recalibrate


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.9)

    def forward(self, x):
        return self.drop(self.norm(x))


def batches(number=4):
    draw = generator(0, "batches")
    return [2 + 3 * torch.randn(8, 3, generator=draw) for _ in range(number)]


def test_the_statistics_are_the_mean_over_the_batches():
    norm, data = nn.BatchNorm1d(3), batches()
    assert recalibrate(norm, data) == 4
    torch.testing.assert_close(norm.running_mean, torch.stack([b.mean(0) for b in data]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([b.var(0) for b in data]).mean(0))


def test_the_own_momentum_counts_the_last_batches_most():
    norm, data = nn.BatchNorm1d(3, momentum=0.5), batches(2)
    recalibrate(norm, data, cumulative=False)
    wanted = 0.5 * (0.5 * data[0].mean(0)) + 0.5 * data[1].mean(0)
    torch.testing.assert_close(norm.running_mean, wanted)
    assert norm.momentum == 0.5


@pytest.mark.parametrize(("fraction", "used"), [(1.0, 5), (0.4, 2), (0.21, 2), (0.2, 1), (0.01, 1)])
def test_a_fraction_takes_the_first_batches_rounded_up(fraction, used):
    data = batches(5)
    one, two = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    assert recalibrate(one, data, fraction) == used
    recalibrate(two, data[:used])
    assert torch.equal(one.running_mean, two.running_mean)
    assert int(one.num_batches_tracked) == used


def test_a_fraction_of_zero_changes_nothing():
    norm = nn.BatchNorm1d(3)
    norm.running_mean.fill_(7.0)
    assert recalibrate(norm, batches(), 0.0) == 0
    assert norm.running_mean.tolist() == [7.0] * 3


def test_what_was_there_before_is_forgotten():
    one, two = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    one.running_mean.fill_(100.0)
    one.num_batches_tracked.fill_(100)
    for norm in (one, two):
        recalibrate(norm, batches())
    assert torch.equal(one.running_mean, two.running_mean)


@pytest.mark.parametrize("training", [True, False])
def test_mode_momentum_and_parameters_stay(training):
    model = Named().train(training)
    model.drop.train(not training)
    before = {name: value.clone() for name, value in model.named_parameters()}
    recalibrate(model, batches())
    assert model.norm.training is training
    assert model.drop.training is not training
    assert model.norm.momentum == 0.1
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


def test_dropout_before_a_normalisation_does_not_disturb_it():
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(3)).train()
    plain = nn.BatchNorm1d(3)
    recalibrate(model, batches())
    recalibrate(plain, batches())
    assert torch.equal(model[1].running_var, plain.running_var)


def test_batches_may_be_keywords_or_tuples():
    one, two = Named(), Named()
    recalibrate(one, [{"x": each} for each in batches()])
    recalibrate(two, [(each,) for each in batches()])
    assert torch.equal(one.norm.running_mean, two.norm.running_mean)


def test_an_interruption_leaves_mode_and_momentum():
    model = Named().train()
    with pytest.raises(TypeError):
        recalibrate(model, [{"y": batches()[0]}])
    assert model.drop.training
    assert model.norm.momentum == 0.1


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_the_fraction_is_checked(fraction):
    with pytest.raises(InvalidValue, match="in \\[0, 1\\]"):
        recalibrate(nn.BatchNorm1d(3), batches(), fraction)


def test_no_batch_is_an_error():
    with pytest.raises(MissingStatistic, match="training data"):
        recalibrate(nn.BatchNorm1d(3), [])


def test_which_models_have_statistics():
    assert has_batch_norm(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    assert not has_batch_norm(nn.BatchNorm1d(3, track_running_stats=False))
    assert not has_batch_norm(nn.LayerNorm(3))
