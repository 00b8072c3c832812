"""Costs by hand: operations over a schedule, RigL's formula, churn, overlap, memory."""

import pytest
import torch
from torch import nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.mask import Mask
from sparsecraft.lab import cost
from sparsecraft.lab.cost import (
    PeakMemory,
    churn,
    jaccard,
    mean_density,
    parameter_densities,
    stored_bytes,
    training_flops,
)
from sparsecraft.lab.paths import effective_density
from sparsecraft.methods.weights.rigl import RigL
from sparsecraft.model.flops import profile_flops
from sparsecraft.model.targets import find_targets
from sparsecraft.model.training_report import Event

NET = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
FIRST, SECOND = 2 * 5 * 8 * 16, 2 * 5 * 16 * 4
FULL = FIRST + SECOND


def flops(history, steps, **options):
    profile = profile_flops(NET, torch.zeros(5, 8))
    return training_flops(profile, list(find_targets(NET)), history, steps, **options)


def both(density):
    return {"0": density, "2": density}


def test_a_dense_training_counts_one_forward_and_two_backward_passes():
    found = flops([], 10)
    assert found.forward == found.backward_input == found.backward_weight == 10 * FULL
    assert found.total == found.dense == 30 * FULL
    assert found.relative == 1


def test_each_layer_counts_with_its_own_density():
    found = flops([Event(0, {"0": 0.25, "2": 0.5})], 4)
    assert found.forward == 4 * (0.25 * FIRST + 0.5 * SECOND)
    assert found.total == 3 * found.forward


def test_a_density_holds_from_its_step_to_the_next():
    history = [Event(0, both(1.0)), Event(3, both(0.5)), Event(7, both(0.25))]
    assert flops(history, 10).forward == FULL * (3 * 1.0 + 4 * 0.5 + 3 * 0.25)
    # A training that was stopped has not paid for what was planned.
    assert flops(history, 5).forward == FULL * (3 * 1.0 + 2 * 0.5)


def test_a_dense_start_without_an_event_is_dense():
    assert flops([Event(6, both(0.5))], 10).forward == FULL * (6 + 4 * 0.5)


def test_dense_gradients_follow_the_formula_of_rigl():
    every, updates = 4, 5
    history = [Event(0, both(0.5))]
    history += [
        Event(step, both(0.5), changed=3, dense_gradient=True)
        for step in range(every + 1, updates * (every + 1) + 1, every + 1)
    ]
    steps = updates * (every + 1)
    sparse = 0.5 * FULL
    # (3 f_s D + 2 f_s + f_d) / (D + 1) for each step, appendix H of Evci et al.
    by_hand = (3 * sparse * every + 2 * sparse + FULL) / (every + 1)
    found = flops(history, steps)
    assert found.total / steps == pytest.approx(by_hand)
    assert by_hand == RigL(every=every).flops_of_step(sparse, FULL, total=1000)


def test_a_dense_gradient_is_taken_under_the_density_before_its_event():
    history = [Event(0, both(0.5)), Event(2, both(0.25), dense_gradient=True)]
    found = flops(history, 3)
    assert found.backward_weight == 0.5 * FULL + FULL + 0.25 * FULL
    assert found.forward == 2 * 0.5 * FULL + 0.25 * FULL


def test_live_weights_get_dense_gradients_and_a_teacher_answers_each_batch():
    found = flops([Event(0, both(0.5))], 4, live=True, teacher=True, passes=3)
    assert found.backward_weight == 3 * 4 * FULL
    assert found.backward_input == 3 * 4 * 0.5 * FULL
    assert found.teacher == 3 * 4 * FULL
    assert found.dense == 3 * 3 * 4 * FULL
    assert found.to_json()["relative"] == found.total / found.dense


def test_a_history_out_of_order_is_refused():
    with pytest.raises(InvalidValue, match="order"):
        flops([Event(3, both(0.5)), Event(1, both(0.5))], 4)


def test_parts_of_a_parameter_without_a_target_are_dense():
    targets = list(find_targets(NET))
    assert parameter_densities(targets, {"0": 0.25}, {"0.weight": 256}) == {
        "0.weight": 1 - 0.75 * 128 / 256
    }
    assert mean_density(targets, {"0": 0.0}) == 64 / 192


def test_churn_and_overlap():
    history = [Event(0, both(0.5)), Event(2, both(0.5), 4), Event(3, both(0.5)), Event(4, {}, 8)]
    assert churn(history, 24) == (2, 0.25)
    assert churn([], 24) == (0, 0.0)
    first = {"a": torch.tensor([True, True, False, False])}
    last = {"a": torch.tensor([True, False, True, False]), "b": torch.tensor([True])}
    assert jaccard(first, last) == 1 / 3
    assert jaccard({}, last) is None


def test_dead_neurons_are_found_both_ways():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    keep = {
        "0.weight": torch.tensor([[1, 0], [0, 0], [0, 1]]).bool(),
        # Neuron 1 reads the dead neuron 1 only; neuron 2 is read by nobody.
        "2.weight": torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1]]).bool(),
        "4.weight": torch.tensor([[1, 1, 0]]).bool(),
    }
    found = effective_density(net, Mask(keep), find_targets(net), {"input": torch.ones(1, 2)})
    assert found == 3 / 18  # one path of three weights


def test_effective_density_never_exceeds_density_and_is_one_for_a_dense_net():
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 5),
    )  # fmt: skip
    targets = find_targets(net)
    batch = {"input": torch.randn(2, 1, 8, 8)}
    assert effective_density(net, Mask({}), targets, batch) == 1.0
    for density in (0.5, 0.1, 0.05):
        draw = torch.Generator().manual_seed(1)
        keep = {
            t.parameter: torch.rand(net.get_parameter(t.parameter).shape, generator=draw) < density
            for t in targets
        }
        mask = Mask(keep)
        found = effective_density(net, mask, targets, batch)
        assert 0 <= found <= mask.density
    assert net[1].training


def test_attention_is_not_judged_by_a_flow_that_cannot_see_it():
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    batch = {"src": torch.randn(1, 3, 8)}
    assert effective_density(attention, Mask({}), find_targets(attention), batch) is None


def test_stored_bytes_count_weights_gradients_moments_and_masks():
    net = nn.Linear(4, 2, bias=False)
    adam = torch.optim.AdamW(net.parameters())
    net(torch.ones(1, 4)).sum().backward()
    adam.step()
    mask = {"weight": torch.ones(2, 4, dtype=torch.bool)}
    # 8 weights, gradients and two moments of 4 bytes, AdamW's step counter, 8 bytes of mask.
    assert stored_bytes(net, adam, mask) == 4 * 8 * 4 + 4 + 8


def test_peak_memory_is_that_of_the_block():
    with PeakMemory() as large:
        torch.ones(30_000_000).sum()
    with PeakMemory() as small:
        pass
    assert small.bytes > 0
    if large.exact:
        assert large.bytes > small.bytes + 60_000_000


def test_memory_that_cannot_be_reset_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(cost, "_REFERENCES", tmp_path / "no" / "such" / "file")
    with PeakMemory() as memory:
        pass
    assert not memory.exact
    assert memory.bytes > 0
