"""The estimate counts what a pruning really holds."""

from __future__ import annotations

import pytest
import torch
from tests.models import batches_for, tiny_gpt2, tiny_llama, tiny_mixtral, tiny_mlp

from sparsecraft.core.catalog import build
from sparsecraft.core.statistics import Hessian, InputNorm
from sparsecraft.model import calibration
from sparsecraft.model.estimate import estimate, state_bytes
from sparsecraft.model.targets import find_targets


def test_state_of_a_statistic():
    (first, *_) = find_targets(tiny_mlp())
    assert state_bytes([first], [InputNorm]) == 12 * 8  # float64 sums
    assert state_bytes([first], [Hessian]) == 12 * 12 * 4
    assert state_bytes([first], []) == 0


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_mixtral])
@pytest.mark.parametrize("statistic", [InputNorm, Hessian])
def test_never_less_than_what_is_held(monkeypatch, make, statistic):
    model = make()
    targets = find_targets(model)
    held = []
    values = calibration.Taps.values

    def measured(taps):
        tensors = [v for s in taps.sums.values() for each in s for v in vars(each).values()]
        held.append(sum(t.numel() * t.element_size() for t in tensors if torch.is_tensor(t)))
        return values(taps)

    monkeypatch.setattr(calibration.Taps, "values", measured)
    for _ in calibration.stages(model, targets, [statistic], batches_for(model, rows=8)):
        pass
    method = build("wanda" if statistic is InputNorm else "sparsegpt")
    stated = estimate(model, targets, method, tokens=100).statistics_bytes
    assert max(held) <= stated <= 4 * max(held)


def test_hidden_states_grow_with_the_tokens():
    model = tiny_llama()
    targets = find_targets(model)
    one, ten = (estimate(model, targets, build("wanda"), tokens) for tokens in (100, 1000))
    assert one.hidden_bytes == 2 * 100 * 32 * 4
    assert ten.hidden_bytes == 10 * one.hidden_bytes
    assert ten.statistics_bytes == one.statistics_bytes
    assert ten.bytes == ten.hidden_bytes + ten.statistics_bytes + ten.work_bytes
    assert one.seconds > 0


def test_without_data_there_is_nothing_to_calibrate():
    model = tiny_llama()
    targets = find_targets(model)
    needed = estimate(model, targets, build("magnitude"), tokens=0)
    assert needed.statistics_bytes == needed.hidden_bytes == needed.seconds == 0
    assert needed.work_bytes == 3 * 64 * 32 * 4


def test_gradient_methods_hold_copies_of_the_model():
    model = tiny_llama()
    targets = find_targets(model)
    without = estimate(model, targets, build("global_magnitude"), tokens=0)
    having = estimate(model, targets, build("snip"), tokens=100)
    assert without.work_bytes == targets.numel * 4
    size = sum(p.numel() for p in model.parameters()) * 4
    assert having.work_bytes == 3 * targets.numel * 4 + size
