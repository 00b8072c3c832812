import threading

import pytest
import torch

from sparsecraft.kernels import threads
from sparsecraft.kernels.threads import in_threads, rest_openmp, shares


def test_in_threads_keeps_the_order_and_runs_at_once():
    barrier = threading.Barrier(3, timeout=10)

    def work(item):
        barrier.wait()  # returns only when all three run together
        return item * item

    assert in_threads(work, [1, 2, 3]) == [1, 4, 9]
    assert in_threads(lambda item: item, []) == []


def test_in_threads_passes_an_error_on():
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda item: 1 // item, [1, 0])


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("sizes", [[5] * 12, [1], [100, 1, 1, 1], [1, 1, 1, 100], [0, 0], []])
def test_shares_are_consecutive_and_complete(monkeypatch, threads, sizes):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    items = list(range(len(sizes)))
    dealt = shares(items, sizes, smallest=1)
    assert [item for share in dealt for item in share] == items
    assert len(dealt) <= threads
    assert all(dealt)


def test_shares_are_balanced_and_not_too_small(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert [len(share) for share in shares(range(40), [3] * 40, smallest=30)] == [10] * 4
    assert [len(share) for share in shares(range(40), [3] * 40, smallest=60)] == [20] * 2
    assert len(shares(range(40), [3] * 40, smallest=121)) == 1


@pytest.mark.parametrize(("cores", "rests"), [(2, 1), (3, 0)])
def test_openmp_rests_only_where_cores_are_short(monkeypatch, cores, rests):
    calls = []
    monkeypatch.setattr(threads, "_pause", lambda: lambda kind: calls.append(kind) or 0)
    monkeypatch.setattr(threads, "_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert in_threads(lambda item: -item, [1, 2]) == [-1, -2]
    assert calls == [1] * rests  # 1 is omp_pause_soft
    assert in_threads(lambda item: -item, [1]) == [-1]
    assert calls == [1] * rests


def test_a_runtime_without_the_call_is_left_alone(monkeypatch):
    monkeypatch.setattr(threads, "_pause", lambda: None)
    assert rest_openmp() is False


def test_products_are_the_same_after_a_rest():
    x = torch.randn(300, 300, generator=torch.Generator().manual_seed(0))
    before = x @ x
    rest_openmp()
    torch.testing.assert_close(x @ x, before, rtol=0, atol=0)
