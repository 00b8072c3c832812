"""Averages of state dicts: by hand, their identities, what may not be averaged."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.core.mask import Mask
from sparsecraft.core.seeds import generator
from sparsecraft.methods.weights.soups import greedy_soup, soup, union_soup


def state(*values, name="w", dtype=torch.float32):
    return {name: torch.tensor(values, dtype=dtype)}


def mask(*values):
    return Mask({"w": torch.tensor(values).bool()})


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight


def test_uniform_and_weighted_by_hand():
    states = [state(1.0, 0.0), state(3.0, 0.0), state(8.0, 3.0)]
    assert soup(states)["w"].tolist() == [4.0, 1.0]
    assert soup(states, (0.5, 0.5, 0.0))["w"].tolist() == [2.0, 0.0]


@given(
    st.integers(2, 6),
    st.integers(0, 1000),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_the_soup_of_equal_models_is_the_model(number, seed, dtype):
    one = {"w": torch.randn(20, generator=generator(seed, "w")).to(dtype)}
    made = soup([{k: v.clone() for k, v in one.items()} for _ in range(number)])
    assert torch.equal(made["w"], one["w"])
    assert made["w"].dtype == dtype


@given(st.integers(2, 5), st.integers(0, 1000), st.floats(0, 1))
def test_a_soup_keeps_exactly_the_pattern(number, seed, density):
    draw = generator(seed, "soup")
    keep = torch.rand(30, generator=draw) < density
    states = [{"w": torch.randn(30, generator=draw)} for _ in range(number)]
    made = soup(states, masks=[Mask({"w": keep.clone()}) for _ in range(number)])["w"]
    assert not made[~keep].any()
    mean = torch.stack([each["w"] for each in states]).double().mean(0)
    torch.testing.assert_close(made[keep].double(), mean[keep], rtol=1e-6, atol=1e-7)


def test_the_candidates_stay_and_share_nothing_with_the_soup():
    states = [state(1.0, 2.0), state(1.0, 2.0)]
    made = soup(states, masks=mask(1, 0))
    made["w"].fill_(9.0)
    assert states[0]["w"].tolist() == [1.0, 2.0]


def test_counters_are_rounded_and_other_integers_must_agree():
    def with_integers(batches, index):
        return {"num_batches_tracked": torch.tensor(batches), "index": torch.tensor([index])}

    made = soup([with_integers(10, 3), with_integers(11, 3), with_integers(11, 3)])
    assert made["num_batches_tracked"].dtype == torch.int64
    assert int(made["num_batches_tracked"]) == 11
    assert made["index"].tolist() == [3]
    with pytest.raises(InvalidValue, match=r"'index' holds torch\.int64 that differ"):
        soup([with_integers(1, 3), with_integers(1, 4)])
    with pytest.raises(InvalidValue, match=r"'w' holds torch\.bool that differ"):
        soup([state(True, dtype=torch.bool), state(False, dtype=torch.bool)])


def test_shared_tensors_stay_shared_and_load():
    models = [Tied(), Tied()]
    made = soup([model.state_dict() for model in models])
    assert made["embed.weight"].data_ptr() == made["head.weight"].data_ptr()
    wanted = (models[0].embed.weight + models[1].embed.weight) / 2
    torch.testing.assert_close(made["head.weight"], wanted.detach())
    target = Tied()
    target.load_state_dict(made)
    assert torch.equal(target.head.weight, made["embed.weight"])


def test_a_mask_on_one_name_of_a_shared_tensor_prunes_both():
    keep = torch.zeros(4, 3, dtype=torch.bool)
    keep[0] = True
    made = soup([Tied().state_dict() for _ in range(2)], masks=Mask({"embed.weight": keep}))
    assert not made["head.weight"][1:].any()
    assert made["head.weight"].data_ptr() == made["embed.weight"].data_ptr()


def test_infinite_entries_that_agree_are_copied_and_others_refused():
    states = [state(float("-inf"), 1.0), state(float("-inf"), 1.0)]
    assert soup(states)["w"].tolist() == [float("-inf"), 1.0]
    with pytest.raises(NonFinite, match="candidates \\[1\\]"):
        soup([state(1.0), state(float("nan"))])


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ([state(1.0)], "at least 2 candidates, but 1"),
        ([state(1.0), state(1.0, name="v")], "different keys: \\['v', 'w'\\]"),
        ([state(1.0), state(1.0, 2.0)], "torch.float32 \\(2,\\) in candidate 1"),
        ([state(1.0), state(1.0, dtype=torch.float64)], "torch.float64 \\(1,\\) in candidate 1"),
        ([{"w": 1.0}, {"w": 1.0}], "'w' is a float"),
    ],
)
def test_candidates_that_do_not_fit_together(states, message):
    with pytest.raises(InvalidValue, match=message):
        soup(states)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((0.5, 0.6), "sum 1.1"),
        ((1.5, -0.5), "at least 0"),
        ((1.0,), "1 weights for 2 candidates"),
        ((float("nan"), 1.0), "sum nan"),
    ],
)
def test_weights_are_checked(weights, message):
    with pytest.raises(InvalidValue, match=message):
        soup([state(1.0), state(2.0)], weights)


def test_masks_are_checked():
    states = [state(1.0, 2.0), state(3.0, 4.0)]
    with pytest.raises(InvalidValue, match="candidates 0 and 1 differ, first in 'w'"):
        soup(states, masks=[mask(1, 0), mask(0, 1)])
    with pytest.raises(InvalidValue, match="1 masks for 2 candidates"):
        soup(states, masks=[mask(1, 0)])
    with pytest.raises(InvalidValue, match="not in the state dict: \\['v'\\]"):
        soup(states, masks=Mask({"v": torch.ones(2, dtype=torch.bool)}))


def test_differently_pruned_models_give_a_denser_average_that_says_so():
    states = [state(2.0, 4.0, 6.0), state(8.0, 10.0, 12.0)]
    made, union = union_soup(states, [mask(1, 0, 0), mask(0, 1, 0)])
    assert made["w"].tolist() == [1.0, 5.0, 0.0]
    assert union["w"].tolist() == [True, True, False]
    with pytest.raises(InvalidValue, match="1 masks for 2"):
        union_soup(states, [mask(1, 0, 0)])


def test_greedy_takes_only_what_helps_and_ties_count_as_help():
    # The score is the distance to 2; the best alone is 3, with 1 it is perfect, with 9 worse.
    states = [state(9.0), state(1.0), state(3.0), state(2.0)]

    def score(each):
        return -abs(float(each["w"]) - 2)

    found = greedy_soup(states[:3], score)
    assert found.chosen == (1, 2)
    assert found.state["w"].tolist() == [2.0]
    assert found.scores == (-7.0, -1.0, -1.0)
    assert found.score == 0.0
    assert greedy_soup([state(2.0), state(2.0)], score).chosen == (0, 1)
    assert greedy_soup([states[3], states[0]], score).chosen == (0,)


def test_greedy_scores_what_is_recalibrated():
    seen = []

    def recalibrate(each):
        seen.append(float(each["w"]))
        return {"w": each["w"] + 100}

    found = greedy_soup([state(0.0), state(2.0)], lambda s: -float(s["w"]), recalibrate)
    assert seen == [0.0, 2.0, 1.0]
    assert found.state["w"].tolist() == [100.0]
    assert found.scores == (-100.0, -102.0)


def test_greedy_masks_before_it_scores():
    found = greedy_soup(
        [state(1.0, 5.0), state(3.0, 5.0)], lambda s: -float(s["w"][1]), masks=mask(1, 0)
    )
    assert found.scores == (0.0, 0.0)
    assert found.state["w"].tolist() == [2.0, 0.0]


def test_greedy_refuses_a_score_that_is_not_a_number():
    with pytest.raises(NonFinite, match="score nan"):
        greedy_soup([state(1.0), state(2.0)], lambda s: float("nan"))
    with pytest.raises(InvalidValue, match="at least 2 candidates"):
        greedy_soup([state(1.0)], lambda s: 0.0)
