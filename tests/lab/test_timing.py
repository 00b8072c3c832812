import time

import pytest
import torch
from torch import nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.lab import timing
from sparsecraft.lab.timing import LEAST_SECONDS, interleaved_latency, repetitions


class Sleeper(nn.Module):
    """Takes a known time, and writes down when it ran."""

    def __init__(self, name: str, seconds: float, log: list[str]) -> None:
        super().__init__()
        self.name, self.seconds, self.log = name, seconds, log

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.log.append(self.name)
        time.sleep(self.seconds)
        return x


def test_both_take_turns_in_alternating_order_after_a_warm_up():
    log: list[str] = []
    dense, arm = Sleeper("dense", 0.03, log), Sleeper("arm", 0.03, log)
    interleaved_latency(dense, arm, {1: {"x": torch.zeros(1)}}, rounds=4)
    assert log[:4] == ["dense", "dense", "arm", "arm"]
    assert log[4:] == ["dense", "arm", "arm", "dense", "dense", "arm", "arm", "dense"]


def test_the_record_holds_together():
    log: list[str] = []
    dense, arm = Sleeper("dense", 0.03, log), Sleeper("arm", 0.01, log)
    sizes = {1: {"x": torch.zeros(1)}, 32: {"x": torch.zeros(32)}}
    found = interleaved_latency(dense, arm, sizes, rounds=3)
    assert list(found) == [1, 32]
    for each in found.values():
        assert each.rounds == 3
        assert 10 <= each.ms_low <= each.ms <= each.ms_high
        assert each.dense_ms >= 30
        assert each.ratio_low <= each.ratio <= each.ratio_high


def test_the_ratio_is_the_median_of_the_rounds_not_of_the_times():
    found = timing._summary([(3.0, 1.0), (2.0, 2.0), (8.0, 4.0)])
    assert found.ratio == 2.0
    assert (found.ms, found.ms_low, found.ms_high, found.dense_ms) == (2000, 1000, 4000, 3000)
    assert (found.ratio_low, found.ratio_high) == (1.0, 3.0)


def test_dense_beside_itself_is_timed_like_any_arm():
    log: list[str] = []
    dense = Sleeper("dense", 0.03, log)
    found = interleaved_latency(dense, dense, {1: {"x": torch.zeros(1)}}, rounds=3)[1]
    assert len(log) == 4 + 6
    assert found.rounds == 3


def test_fast_models_are_repeated_until_a_round_can_be_timed():
    assert repetitions(LEAST_SECONDS * 2) == 1
    assert repetitions(LEAST_SECONDS / 10) == 10
    assert repetitions(0.0) > 1000


def test_no_gradients_are_recorded():
    layer = nn.Linear(2, 2)
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.append(output.requires_grad))
    interleaved_latency(layer, layer, {1: {"input": torch.zeros(1, 2)}}, rounds=3)
    assert seen
    assert not any(seen)


def test_too_few_rounds():
    with pytest.raises(InvalidValue, match="rounds=2"):
        interleaved_latency(nn.Identity(), nn.Identity(), {}, rounds=2)
