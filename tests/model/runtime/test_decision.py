"""The rule of the choice, on times written by hand."""

import pytest

from sparsecraft.model.runtime.candidates import Candidate
from sparsecraft.model.runtime.decision import decide, decide_once
from sparsecraft.model.runtime.timing import Timing

BASE = Candidate("torch", "float32")


def steady(**milliseconds):
    return {
        name.replace("_at_", " "): Timing((value * 1e-3,) * 8)
        for name, value in milliseconds.items()
    }


def exact(_):
    return 0.0


def test_the_fastest_within_the_tolerance():
    times = steady(torch_at_float32=4, dense_at_int8=1, dense_at_bfloat16=2, csr_at_float32=3)
    errors = {"dense int8": 0.03, "dense bfloat16": 0.002, "csr float32": 0.0}
    made = decide(times, BASE, lambda c: errors[c.name], 0.02)
    assert made.chosen == Candidate("dense", "bfloat16")
    assert made.why == "dense bfloat16: 2.00x torch float32"
    assert made.notes == {"dense int8": "error 3.0e-02 exceeds the tolerance 0.02"}


def test_errors_are_asked_of_no_more_candidates_than_needed():
    asked = []
    times = steady(torch_at_float32=4, dense_at_int8=1, dense_at_bfloat16=2)
    decide(times, BASE, lambda c: asked.append(c.name) or 0.0, 0.02)
    assert asked == ["dense int8"]


@pytest.mark.parametrize(("milliseconds", "taken"), [(3.9, False), (3.88, True)])
def test_the_margin_is_three_percent(milliseconds, taken):
    times = steady(torch_at_float32=4, dense_at_float32=milliseconds)
    assert (decide(times, BASE, exact, 0.0).chosen != BASE) is taken


def test_a_gain_that_comes_and_goes_is_not_taken():
    torch = Timing((4e-3,) * 8)
    erratic = Timing((1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 5e-3, 5e-3, 5e-3))
    made = decide({"torch float32": torch, "csr float32": erratic}, BASE, exact, 0.0)
    assert erratic.median < torch.median
    assert made.chosen == BASE


def test_a_gain_over_dense_of_the_same_type_is_told():
    times = steady(
        torch_at_float32=6, torch_at_bfloat16=3, dense_at_bfloat16=2, bitmask_at_bfloat16=1
    )
    made = decide(times, BASE, exact, 0.0)
    assert made.why == "bitmask bfloat16: 6.00x torch float32, 2.00x the best dense bfloat16"


def test_a_layer_with_no_other_candidate_says_so():
    assert decide(steady(torch_at_float32=1), BASE, exact, 0.0).why == (
        "stays torch float32: nothing else applies"
    )


def test_one_store_for_all_rows_is_that_of_the_least_product_of_times():
    timings = {
        1: steady(torch_at_float32=8, gated_at_int8=1, by_input_at_int8=3, dense_at_bfloat16=4),
        32: steady(torch_at_float32=8, by_input_at_int8=4, dense_at_bfloat16=2),
    }
    made = decide_once(timings, BASE, exact, 0.0)
    # by_input int8: 1 * 4; dense bfloat16: 4 * 2.
    assert [made[1].chosen.name, made[32].chosen.name] == ["gated int8", "by_input int8"]
    assert made[1].chosen.store == made[32].chosen.store


def test_one_store_is_never_slower_than_dense_at_any_number_of_rows():
    timings = {
        1: steady(torch_at_float32=8, csr_at_float32=1),
        32: steady(torch_at_float32=8, csr_at_float32=8.1),
    }
    made = decide_once(timings, BASE, exact, 0.0)
    assert {decision.chosen for decision in made.values()} == {BASE}


def test_one_store_keeps_the_tolerance():
    timings = {rows: steady(torch_at_float32=8, dense_at_int8=1) for rows in (1, 32)}
    made = decide_once(timings, BASE, lambda _: 0.1, 0.02)
    assert {decision.chosen for decision in made.values()} == {BASE}
    assert "exceeds the tolerance" in made[1].why


def test_candidates_have_names_that_are_read_back():
    for candidate in (BASE, Candidate("gated", "int8"), Candidate("by_input", "bfloat16")):
        assert Candidate.parse(candidate.name) == candidate
    assert Candidate("gated", "int8").store == "by_input int8"
