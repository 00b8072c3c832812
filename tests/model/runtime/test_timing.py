"""How contenders are timed, with a clock that moves only when a contender runs."""

import time

import pytest
import torch

from sparsecraft.model.runtime import timing
from sparsecraft.model.runtime.timing import Contender, Timing, measure_in_turns


class Clock:
    def __init__(self):
        self.now = 0.0
        self.calls = []

    def contender(self, name, seconds):
        def run(x):
            self.calls.append(name)
            self.now += seconds
            return x

        def rehearse(x):
            self.calls.append(f"rehearse {name}")
            return x

        return Contender(run, rehearse)


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: made.now)
    monkeypatch.setattr(timing, "clock_of", lambda x: lambda: made.now)
    return made


def measured(clock, seconds=1e9, cold=False, **times):
    contenders = {name: clock.contender(name, value) for name, value in times.items()}
    return measure_in_turns(
        contenders, [torch.zeros(1, 4)], baseline="base", cold=cold, seconds=seconds
    )


def test_medians(clock):
    found = measured(clock, base=2.0, fast=1.0)
    assert found["base"].median == 2.0
    assert found["fast"].median == 1.0
    assert found["fast"].gain_over(found["base"]) == [2.0] * len(found["fast"].seconds)


def test_contenders_run_in_turns_in_alternating_order_after_a_warm_up(clock):
    measured(clock, base=1.0, fast=1.0)
    assert clock.calls[:6] == ["base", "fast", "base", "fast", "fast", "base"]


def test_slow_contenders_leave_after_five_rounds_and_the_baseline_stays(clock):
    found = measured(clock, base=9.0, fast=1.0, near=1.2, slow=2.0)
    rounds = {name: len(each.seconds) for name, each in found.items()}
    assert rounds == {"base": 25, "fast": 25, "near": 25, "slow": 5}


def test_a_baseline_without_rivals_is_not_timed_on(clock):
    assert len(measured(clock, base=1.0, slow=2.0)["base"].seconds) == 5


def test_the_time_is_limited_but_five_rounds_are_always_made(clock):
    found = measured(clock, seconds=0.0, base=1.0, fast=1.0)
    assert {len(each.seconds) for each in found.values()} == {5}


def test_cold_calls_are_rehearsed_after_the_cache_is_emptied(clock, monkeypatch):
    monkeypatch.setattr(timing.CacheFlush, "__init__", lambda self: None)
    monkeypatch.setattr(timing.CacheFlush, "__call__", lambda self: clock.calls.append("flush"))
    measured(clock, cold=True, base=1.0, fast=1.0)
    assert clock.calls[2:5] == ["flush", "rehearse base", "base"]


def test_the_flush_reads_twice_the_cache():
    assert timing.CacheFlush().buffer.nbytes >= 2 * timing.cache_bytes() - 4


def test_the_clock_stands_still_while_another_process_has_the_only_core(monkeypatch):
    x = torch.zeros(1)
    monkeypatch.setattr(timing.torch, "get_num_threads", lambda: 1)
    assert timing.clock_of(x) in (time.thread_time, time.perf_counter)
    monkeypatch.setattr(timing.torch, "get_num_threads", lambda: 2)
    assert timing.clock_of(x) is time.perf_counter


def test_quartiles():
    made = Timing((4.0, 1.0, 3.0, 2.0, 5.0))
    assert (made.quartile(1), made.median, made.quartile(3)) == (2.0, 3.0, 4.0)
    assert Timing((1.0,)).quartile(3) == 1.0
