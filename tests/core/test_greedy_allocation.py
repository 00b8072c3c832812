import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.greedy_allocation import (
    AllocationRow,
    block_error,
    effective_sparsity,
    greedy_shares,
    nearest_row,
    relative_sizes,
)

LLAMA3 = {
    "q": (4096, 4096),
    "k": (1024, 4096),
    "v": (1024, 4096),
    "o": (4096, 4096),
    "gate": (14336, 4096),
    "up": (14336, 4096),
    "down": (4096, 14336),
}


def test_sizes_are_those_of_the_papers_where_their_tables_are_right():
    assert relative_sizes(LLAMA3) == {
        "q": 1.0, "k": 0.25, "v": 0.25, "o": 1.0, "gate": 3.5, "up": 3.5, "down": 3.5,
    }  # fmt: skip
    llama2 = dict.fromkeys("qkvo", (4096, 4096)) | {"gate": (11008, 4096)}
    assert relative_sizes(llama2)["k"] == 1.0  # the paper's table says 1/8
    assert relative_sizes(llama2)["gate"] == 2.6875
    qwen = {"q": (3584, 3584), "k": (512, 3584), "gate": (18944, 3584)}
    assert relative_sizes(qwen) == pytest.approx({"q": 1, "k": 1 / 7, "gate": 5.2857}, abs=1e-4)
    phi = {"qkv": (7680, 5120), "o": (5120, 5120), "gate_up": (35840, 5120), "down": (5120, 17920)}
    assert relative_sizes(phi) == {"qkv": 1.5, "o": 1.0, "gate_up": 7.0, "down": 3.5}


def test_effective_sparsity_by_hand():
    assert effective_sparsity({"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 3.0}) == 0.25


def test_error_is_a_norm_over_the_tokens_of_the_last_quarter():
    dense = torch.zeros(2, 8, 3)
    sparse = torch.zeros(2, 8, 3)
    sparse[0, 5, 0] = 100.0  # before the last quarter
    sparse[0, 6, 0], sparse[0, 7, 0] = 3.0, 4.0
    assert block_error(dense, sparse) == pytest.approx(5.0 / 6)


def test_each_step_goes_where_it_hurts_least():
    sizes = {"a": 1.0, "b": 2.0}
    rows = greedy_shares(sizes, lambda s: s["a"] ** 2 + 3 * s["b"] ** 2, target=0.5, step=0.3)
    for before, after in itertools.pairwise(rows):
        moved = [name for name in sizes if after.shares[name] != before.shares[name]]
        assert len(moved) == 1
        gain = after.shares[moved[0]] - before.shares[moved[0]]
        assert gain == pytest.approx(min(0.3 / sizes[moved[0]], 1 - before.shares[moved[0]]))
    assert rows[0].shares == {"a": 0.0, "b": 0.0}
    assert rows[-2].effective < 0.5 <= rows[-1].effective
    assert rows[-1].error < rows[-1].uniform_error


@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(0.1, 8), min_size=1),
    st.floats(0, 0.9),
    st.floats(0.02, 0.5),
)
def test_the_target_is_reached_and_no_share_passes_its_limit(sizes, target, step):
    rows = greedy_shares(
        sizes, lambda s: sum(s.values()), target=target, step=step, most=dict.fromkeys(sizes, 0.95)
    )
    assert rows[-1].effective >= target - 1e-6
    assert all(0 <= share <= 0.95 for row in rows for share in row.shares.values())
    effective = [row.effective for row in rows]
    assert effective == sorted(effective)
    assert rows[-1].effective == pytest.approx(effective_sparsity(rows[-1].shares, sizes))


def test_a_target_beyond_the_limits_is_refused():
    with pytest.raises(InvalidValue, match=r"allows 0\.5 at most"):
        greedy_shares({"a": 1.0}, lambda s: 0.0, target=0.6, step=0.1, most={"a": 0.5})


def test_the_nearest_row_is_looked_up():
    rows = [AllocationRow(x, 0.0, 0.0, {"a": x}) for x in (0.0, 0.2, 0.4)]
    assert nearest_row(rows, 0.29).effective == 0.2
    assert nearest_row(rows, 0.9).shares == {"a": 0.4}
    assert rows[1].to_json() == {
        "effective": 0.2, "error": 0.0, "uniform_error": 0.0, "shares": {"a": 0.2},
    }  # fmt: skip
