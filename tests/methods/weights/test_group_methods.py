"""WGSEF, group lasso and group hard thresholding."""

import json

import pytest
import torch
from torch import nn

from sparsecraft import Sparsifier
from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue, NoMatch, UnknownName
from sparsecraft.core.group_envelope import GroupEnvelope
from sparsecraft.core.kinds import Clock
from sparsecraft.core.penalties import GroupL2
from sparsecraft.core.seeds import generator
from sparsecraft.methods.weights.group_lasso import GroupIHT, GroupLasso
from sparsecraft.methods.weights.group_prox import Pool
from sparsecraft.methods.weights.wgsef import WGSEF
from sparsecraft.model.group_builders import find_groups, remove_zero_groups
from sparsecraft.model.groups import GroupFamily

RATE = 0.1


def labelled(rows=5, entries=3, k=2):
    """One parameter "w" whose rows are groups, as a method's units."""
    labels = torch.arange(rows)[:, None].expand(rows, entries).contiguous()
    return (Pool((GroupFamily.from_labels("rows", {"w": labels}),), k),)


def matrix(*labels, rows=5, entries=3):
    return torch.randn(rows, entries, generator=generator(0, *labels), dtype=torch.float64)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3)
    )


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3),
    )  # fmt: skip


def sgd(model, rate=RATE):
    return torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, nesterov=True)


def train(model, method, steps=30, shape=(16, 6), watch=None, optimizer=None):
    optimizer = sgd(model) if optimizer is None else optimizer
    sparsifier = Sparsifier(model, method, total_steps=steps).attach(optimizer)
    for step in range(steps):
        stream = generator(step, "batch")
        x = torch.randn(shape, generator=stream)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), x.flatten(1).abs().argmax(1) % 3).backward()
        optimizer.step()
        if watch is not None:
            watch(step, sparsifier)
    return sparsifier


def active(model, **options):
    parameters = dict(model.named_parameters())
    return [int(f.active(parameters).sum()) for f in find_groups(model, **options)]


# -- single steps --------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["one", "size", "inverse_size"])
def test_one_prox_step_is_the_prox_at_rate_times_strength(weights):
    w, method = matrix("w"), WGSEF(k=2, strength=3.0, weights=weights)
    expected = GroupEnvelope(k=2, weights=weights).prox(w.clone(), RATE * 3.0)
    gone = method.step_units(labelled(), {"w": w}, None, {}, Clock(0, 10, RATE))
    assert torch.allclose(w, expected, rtol=1e-12)
    assert torch.equal(gone["w"], (w == 0))


def test_one_half_space_step_by_hand():
    """x~ = x - rate * (g + strength * grad R(x)); zero where x~ . x < epsilon |x|^2, or x was 0."""
    x = torch.tensor([[2.0, 0.0], [0.1, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    g = torch.tensor([[1.0, 1.0], [1.5, 0.0], [0.0, 8.5], [5.0, 5.0]], dtype=torch.float64)
    method = WGSEF(k=1, strength=0.5, stage="half_space", switch=0.0, epsilon=0.05)
    w = x - RATE * g
    gone = method.step_units(labelled(4, 2, k=1), {"w": w}, {"w": x}, {}, Clock(5, 10, RATE))
    # k = 1: u = |x| / S with S = 3.1, so that the gradient of group j is x / |x| * 3.1.
    shrink = RATE * 0.5 * 3.1
    first = [2.0 - 0.1 - shrink, -0.1]
    # The second turns around; the third has 1 - 0.85 - 0.155 < 0.05; the fourth was zero.
    assert w[0].tolist() == pytest.approx(first)
    assert w[1:].abs().sum() == 0
    assert gone["w"].tolist() == [[False] * 2, [True] * 2, [True] * 2, [True] * 2]


def test_epsilon_decides_at_the_border():
    x = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    for epsilon, stays in ((0.0, True), (0.5, True), (0.7, False)):
        method = WGSEF(k=2, strength=0.0, stage="half_space", switch=0.0, epsilon=epsilon)
        w = torch.tensor([[0.6], [-0.1]], dtype=torch.float64)
        method.step_units(labelled(2, 1), {"w": w}, {"w": x}, {}, Clock(0, 1, RATE))
        assert (float(w[0]) != 0) is stays and float(w[1]) == 0


def test_the_group_lasso_and_hard_thresholding_steps():
    w, clock = matrix("w"), Clock(0, 10, RATE)
    expected = GroupL2(strength=2.0).prox(w.clone(), RATE)
    GroupLasso(k=2, strength=2.0).step_units(labelled(), {"w": w}, None, {}, clock)
    assert torch.allclose(w, expected)
    w = matrix("w")
    largest = w.norm(dim=1).topk(2).indices
    kept = w[largest].clone()
    GroupIHT(k=2).step_units(labelled(), {"w": w}, None, {}, clock)
    assert torch.equal(w[largest], kept) and int((w.norm(dim=1) > 0).sum()) == 2


def test_a_half_space_step_of_group_lasso():
    x = torch.tensor([[3.0, 4.0], [0.1, 0.0]], dtype=torch.float64)
    method = GroupLasso(k=1, strength=2.0, stage="half_space", switch=0.0)
    w = x.clone()
    method.step_units(labelled(2, 2), {"w": w}, {"w": x}, {}, Clock(0, 1, RATE))
    factor = 1 - RATE * 2.0 * 2**0.5 / 5
    assert w[0].tolist() == pytest.approx([3 * factor, 4 * factor]) and w[1].tolist() == [0, 0]


@pytest.mark.parametrize("weights", ["one", "size", "inverse_size"])
def test_the_last_groups_are_those_of_highest_weighted_norm(weights):
    labels = {"w": torch.tensor([0, 0, 0, 0, 1, 2])}
    units = (Pool((GroupFamily.from_labels("mine", labels),), 1),)
    w = torch.tensor([0.5, 0.5, 0.5, 0.5, 1.4, 0.9])  # norms 1, 1.4, 0.9; sizes 4, 1, 1
    WGSEF(k=1, weights=weights).finish_units(units, {"w": w}, {}, Clock(9, 10))
    kept = {"one": 4, "size": 0, "inverse_size": 4}[weights]
    assert w.nonzero().reshape(-1).tolist()[0] == kept


# -- whole trainings -----------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("make", [WGSEF, GroupLasso, GroupIHT], ids=["wgsef", "group lasso", "iht"])
def test_exactly_k_groups_are_left(make, scope):
    model = network()
    sparsifier = train(model, make(k=4, scope=scope))
    report = sparsifier.finalize()
    counts = active(model)
    assert (counts == [4, 4]) if scope == "layer" else (sum(counts) == 4)
    dead = sum(int((model[i].weight == 0).sum()) for i in (0, 2))
    assert report.mask.numel - report.mask.kept == dead


def test_the_sparsity_counts_groups_of_each_layer():
    model = network()
    train(model, WGSEF(sparsity=0.75)).finalize()
    assert active(model) == [3, 3]  # of 12 and of 10: 2.5 rounds up
    model = network()
    train(model, "wgsef").finalize()
    assert active(model) == [6, 5]
    model = network()
    train(model, WGSEF(sparsity=0.99)).finalize()
    assert active(model) == [1, 1]


def test_a_great_strength_reaches_k_before_the_last_cut():
    model, reached = network(), []
    train(model, WGSEF(k=3, strength=3.0), watch=lambda *_: reached.append(active(model)))
    assert reached[-1] == [3, 3]
    assert reached[0] != [3, 3]


def test_moments_of_zero_groups_are_cleared():
    model = network()
    optimizer = sgd(model)

    def watch(step, _):
        for layer in (model[0], model[2]):
            zero = (layer.weight == 0).all(1) & (layer.bias == 0)
            for parameter in (layer.weight, layer.bias):
                assert not optimizer.state[parameter]["momentum_buffer"][zero].any()
        seen.append(int(((model[0].weight == 0).all(1)).sum()))

    seen = []
    train(model, WGSEF(k=3, strength=1.0), watch=watch, optimizer=optimizer)
    assert max(seen) > 0


def test_after_the_switch_no_zero_group_returns():
    model, zero, previous = network(), [], []
    method = WGSEF(k=3, strength=0.5, stage="half_space", switch=0.3)

    def watch(step, sparsifier):
        parameters = dict(model.named_parameters())
        now = torch.cat([~f.active(parameters) for pool in sparsifier.units for f in pool.families])
        if step >= 10 and previous:
            assert not (previous[-1] & ~now).any()
        previous.append(now)
        zero.append(int(now.sum()))

    train(model, method, steps=30, watch=watch).finalize()
    assert zero[-1] >= zero[9] and active(model) == [3, 3]


def test_half_space_steps_begin_at_the_switch():
    method = WGSEF(k=1, stage="half_space", switch=0.5)
    assert [method.keeps_previous(Clock(step, 10)) for step in (0, 4, 5, 9)] == [0, 0, 1, 1]
    assert not WGSEF(k=1).keeps_previous(Clock(9, 10))


def test_channels_with_batch_norm_really_put_out_zero_and_can_be_removed():
    model = convolutional()
    shape = (16, 1, 6, 6)
    train(model, WGSEF(sparsity=0.5, groups="filter"), shape=shape).finalize()
    model.eval()
    x = torch.randn(4, 1, 6, 6, generator=generator(7))
    maps = model[:2](x)
    silent = (model[0].weight == 0).flatten(1).all(1)
    assert int(silent.sum()) == 4 and not maps[:, silent].any() and maps[:, ~silent].any()
    smaller, _ = remove_zero_groups(model, find_groups(model, "filter"), x)
    assert smaller[0].out_channels == 4 and smaller[3].weight.shape[:2] == (3, 4)
    assert torch.allclose(smaller(x), model(x), atol=1e-5)


@pytest.mark.parametrize("kind", ["kernel", "filter_shape", "unstructured", "channel"])
def test_the_other_kinds_train_too(kind):
    model = convolutional()
    train(model, WGSEF(sparsity=0.5, groups=kind), steps=5, shape=(8, 1, 6, 6)).finalize()
    for family in find_groups(model, kind):
        left = int(family.active(dict(model.named_parameters())).sum())
        assert left == max(1, (family.size + 1) // 2)


def test_one_layer_only():
    model = network()
    train(model, WGSEF(k=4, layers="2")).finalize()
    assert active(model) == [12, 4]


def test_an_example_input_finds_the_units_of_a_model_whose_input_cannot_be_guessed():
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 3)
    )  # fits images of 28x28 only
    method = WGSEF(k=2, groups="filter")
    with pytest.raises(InvalidValue, match="does not run on the example input"):
        method.units(model)
    (pool,) = method.units(model, torch.zeros(1, 1, 28, 28))
    assert (pool.k, pool.families[0].size) == (2, 4)


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [WGSEF, GroupLasso])
def test_adam_needs_an_acknowledgement(make):
    model = network()
    adam = torch.optim.AdamW(model.parameters(), lr=0.01)
    with pytest.raises(InvalidValue, match=r"AdamW scales each by its own.*scalar_metric=True"):
        Sparsifier(model, make(k=3), total_steps=3).attach(adam)
    model = network()
    adam = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, make(k=3, scalar_metric=True), steps=3, optimizer=adam).finalize()
    assert active(model) == [3, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k=0 is not allowed: give an integer from 1"),
        ({"k": 2.5}, "k=2.5"),
        ({"k": 3, "sparsity": 0.5}, "say the same thing twice"),
        ({"sparsity": 1.0}, "fraction of zeros"),
        ({"strength": -0.1}, "strength=-0.1"),
        ({"epsilon": 1.0}, "epsilon=1.0"),
        ({"switch": 1.5}, "switch=1.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InvalidValue, match=message):
        catalog.build("wgsef", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stage": "halfspace"}, "Did you mean 'half_space'"),
        ({"groups": "neurons"}, "Did you mean 'neuron'"),
        ({"scope": "model"}, "Known: global, layer"),
        ({"weights": "sizes"}, "Did you mean 'size'"),
    ],
)
def test_unknown_words_are_refused_with_the_closest(options, message):
    with pytest.raises(UnknownName, match=message):
        WGSEF(**options)


def test_more_groups_than_there_are_and_none_at_all():
    with pytest.raises(InvalidValue, match="k=11 groups of 2 are to stay, but there are 10"):
        Sparsifier(network(), WGSEF(k=11), total_steps=3)
    with pytest.raises(NoMatch, match="no units of kind"):
        Sparsifier(network(), WGSEF(k=1, groups="filter"), total_steps=3)
    with pytest.raises(InvalidValue, match=r"groups overlap.*outgoing=False"):
        Sparsifier(network(), WGSEF(k=1, outgoing=True), total_steps=3)


def test_targets_are_given_to_the_method():
    with pytest.raises(InvalidValue, match="give layers='2' to the method"):
        Sparsifier(network(), WGSEF(k=1), total_steps=3, targets="2")


@pytest.mark.parametrize("name", ["wgsef", "group_lasso", "group_iht"])
def test_settings_come_back_from_json(name):
    built = catalog.build(name, k=7, scope="global", groups="filter", layers="conv*")
    assert catalog.restore(json.loads(json.dumps(catalog.describe(built)))) == built
