import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models import batches_for, tiny_llama, tiny_mixtral

from sparsecraft import prune
from sparsecraft.core import catalog
from sparsecraft.core.errors import (
    InvalidValue,
    MissingStatistic,
    NoMatch,
    NonFinite,
    UnknownName,
)
from sparsecraft.core.kinds import Layer
from sparsecraft.core.mask import count
from sparsecraft.core.patterns import NM, Block, Unstructured
from sparsecraft.core.statistics import Hessian, InputNorm, InputSum, InputVariance
from sparsecraft.methods.weights.dsnot import DSnoT
from sparsecraft.methods.weights.magnitude import Magnitude
from sparsecraft.methods.weights.random import Random
from sparsecraft.methods.weights.sparsegpt import SparseGPT
from sparsecraft.methods.weights.wanda import Wanda

KINDS = (InputNorm, InputSum, InputVariance, Hessian)
STARTS = {
    "wanda": DSnoT(),
    "magnitude": DSnoT(start="magnitude"),
    "sparsegpt": DSnoT(start="sparsegpt"),
    "sparsegpt updated": DSnoT(start="sparsegpt", updated_weights=True),
    "random": DSnoT(start=Random()),
}


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# Inputs whose means are not zero: otherwise no error is expected, and nothing is swapped.
INPUTS = drawn(6, 20, 24) @ (torch.eye(24) + 0.3 * drawn(24, 24, seed=1)) + drawn(24, seed=3)
WEIGHT = drawn(8, 24, seed=2)


def layer(density=0.5, inputs=INPUTS, kinds=KINDS, **facts):
    statistics = {}
    for kind in kinds:
        statistic = kind(inputs.shape[-1])
        for sequence in inputs:
            statistic.observe(sequence)
        statistics[kind] = statistic.value
    return Layer(name="block.fc1", density=density, statistics=statistics, **facts)


def expected_error(mask, weight=WEIGHT):
    return (weight * layer(kinds=(InputSum,))[InputSum] * ~mask).sum(1)


@pytest.mark.parametrize("start", STARTS)
@given(density=st.floats(0.05, 1))
def test_every_row_keeps_what_the_start_keeps(start, density):
    pruned = STARTS[start].prune(WEIGHT, layer(density))
    assert pruned.mask.sum().item() == pytest.approx(8 * count(24, density), abs=8)
    if start != "random":
        assert pruned.mask.sum(1).tolist() == [count(24, density)] * 8
    assert not pruned.weight[~pruned.mask].any()


@pytest.mark.parametrize("start", STARTS)
def test_the_expected_error_falls_and_keeps_its_sign(start):
    method = STARTS[start]
    first = DSnoT(**{**method.__dict__, "cycles": 0}).prune(WEIGHT, layer())
    found = method.prune(WEIGHT, layer())
    dense = torch.where(first.mask, first.weight, WEIGHT)
    before, after = expected_error(first.mask, dense), expected_error(found.mask, dense)
    assert (after.abs() <= before.abs() + 1e-4).all() and (before * after >= 0).all()
    assert after.abs().sum() < before.abs().sum()
    assert found.facts["expected error before"] == pytest.approx(float(before.abs().mean()))
    assert found.facts["expected error"] == pytest.approx(float(after.abs().mean()), rel=1e-4)
    assert found.facts["swaps"] == float((found.mask & ~first.mask).sum()) > 0


@pytest.mark.parametrize("pattern", ["row", "2:4", "1:4"])
@pytest.mark.parametrize("start", ["wanda", "magnitude"])
def test_without_need_the_first_mask_stays(start, pattern):
    fixed = {} if pattern == "row" else {"pattern": pattern}
    density = 0.25 if pattern == "1:4" else 0.5
    method = catalog.build("dsnot", start=start, threshold=1e9, **fixed)
    idle = method.prune(WEIGHT, layer(density))
    alone = catalog.build(start, pattern=pattern).prune(WEIGHT, layer(density))
    assert torch.equal(idle.mask, alone.mask) and torch.equal(idle.weight, alone.weight)
    assert idle.facts["swaps"] == 0


def test_the_masks_of_sparsegpt_alone_are_by_its_error_of_the_dense_weights():
    idle = DSnoT(start="sparsegpt", cycles=0).prune(WEIGHT, layer())
    hessian = layer()[Hessian].double()
    hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    upper = torch.linalg.cholesky(torch.linalg.inv(hessian), upper=True)
    loss = WEIGHT.double().square() / upper.diagonal().square()
    kept = torch.zeros_like(WEIGHT, dtype=torch.bool)
    kept.scatter_(1, loss.topk(12, dim=1).indices, True)
    assert torch.equal(idle.mask, kept)
    assert torch.equal(idle.weight, WEIGHT * kept)


def test_inputs_that_are_always_zero_go_first_and_never_come_back():
    inputs = INPUTS.clone()
    inputs[..., [3, 20]] = 0
    for method in STARTS.values():
        if method.first.info.name in ("wanda", "sparsegpt"):
            pruned = method.prune(WEIGHT, layer(inputs=inputs))
            assert not pruned.mask[:, [3, 20]].any()


def test_updated_weights_stay_and_what_is_grown_comes_back_as_it_was():
    updated = SparseGPT(pattern=Unstructured(per="row")).prune(WEIGHT, layer())
    found = DSnoT(start="sparsegpt", updated_weights=True).prune(WEIGHT, layer())
    stayed, grown = found.mask & updated.mask, found.mask & ~updated.mask
    assert grown.any() and not torch.equal(updated.weight[stayed], WEIGHT[stayed])
    assert torch.equal(found.weight[stayed], updated.weight[stayed])
    assert torch.equal(found.weight[grown], WEIGHT[grown])
    plain = DSnoT(start="sparsegpt").prune(WEIGHT, layer())
    assert torch.equal(plain.weight, WEIGHT * plain.mask)


@pytest.mark.parametrize("start", ["wanda", "magnitude", "sparsegpt"])
@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(4, 8)], ids=str)
def test_groups_stay_groups(start, pattern):
    density = pattern.fixed_density
    found = DSnoT(start=start, pattern=pattern, threshold=0.0).prune(WEIGHT, layer(density))
    assert (found.mask.view(8, -1, pattern.of).sum(-1) == pattern.keep).all()
    first = DSnoT(start=start, pattern=pattern, cycles=0).prune(WEIGHT, layer(density))
    assert (expected_error(first.mask) * expected_error(found.mask) >= 0).all()
    assert found.facts["swaps"] == float((found.mask & ~first.mask).sum()) > 0


def test_a_count_over_the_whole_matrix_leaves_each_row_its_own():
    whole = Unstructured()
    first = Wanda(pattern=whole).prune(WEIGHT, layer(0.3))
    found = DSnoT(pattern=whole).prune(WEIGHT, layer(0.3))
    assert len(set(first.mask.sum(1).tolist())) > 1 and found.facts["swaps"] > 0
    assert torch.equal(found.mask.sum(1), first.mask.sum(1))


def test_statistics_are_those_of_the_start_and_its_own():
    own = {InputNorm, InputSum, InputVariance}
    assert set(DSnoT().statistics) == set(DSnoT(start="magnitude").statistics) == own
    assert set(DSnoT(start="sparsegpt").statistics) == {*own, Hessian}


def test_a_random_start_makes_it_random():
    assert DSnoT().deterministic and not DSnoT(start=Random()).deterministic


@pytest.mark.parametrize(
    ("layers", "role", "swapped"),
    [
        ("all", None, True),
        ("attention", "attention", True),
        ("attention", "feed-forward", False),
        ("mlp", "attention", False),
        ("mlp", "feed-forward", True),
        ("mlp", "expert", True),
        ("mlp", None, False),
        ("*.fc1", None, True),
        ("*.fc2", None, False),
    ],
)
def test_only_the_chosen_layers_are_swapped(layers, role, swapped):
    found = DSnoT(layers=layers).prune(WEIGHT, layer(role=role))
    first = DSnoT(cycles=0).prune(WEIGHT, layer())
    assert bool(found.facts) == swapped
    assert torch.equal(found.mask, first.mask) != swapped
    if not swapped:
        assert torch.equal(found.weight, first.weight)


def test_the_report_says_which_layers_were_swapped_and_how_far():
    model = tiny_llama()
    report = prune(model, "dsnot", sparsity=0.6, layers="attention", calibration=batches_for(model))
    swapped = [row for row in report.rows if row.facts]
    assert [row.name for row in swapped] == [
        row.name for row in report.rows if ".self_attn." in row.name
    ]
    written = json.loads(json.dumps(report.to_json()))
    facts = {each["name"]: each.get("facts") for each in written["layers"]}
    assert facts["model.layers.0.mlp.up_proj"] is None
    assert set(facts[swapped[0].name]) == {"expected error before", "expected error", "swaps"}
    assert {"start": {"method": "wanda"}}.items() <= {
        "start": {"method": written["method"]["start"]["method"]}
    }.items()


def test_experts_see_their_own_tokens_and_those_without_any_are_named():
    model = tiny_mixtral()
    batch = {"input_ids": torch.full((1, 3), 5)}
    report = prune(model, "dsnot", sparsity=0.5, calibration=[batch])
    unreached = {note.partition(":")[0] for note in report.notes if "no calibration token" in note}
    experts = {row.name: row for row in report.rows if ".experts." in row.name}
    assert unreached and unreached < set(experts)
    for name, row in experts.items():
        assert (row.achieved == 1.0 and not row.facts) == (name in unreached)


def test_layers_that_are_not_there():
    model = tiny_llama()
    with pytest.raises(NoMatch, match=r"layers='\*.fc1' is none of the 14 targets"):
        prune(model, "dsnot", layers="*.fc1", calibration=batches_for(model))
    with pytest.raises(NoMatch, match="layers='mlp' is none of the 8 targets"):
        prune(model, "dsnot", layers="mlp", targets="*.self_attn.*", calibration=batches_for(model))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"pattern": Block(2, 2)}, InvalidValue, "has no form for block:2x2"),
        ({"cycles": -1}, InvalidValue, "cycles=-1"),
        ({"threshold": -0.1}, InvalidValue, "threshold=-0.1"),
        ({"threshold": float("nan")}, InvalidValue, "threshold=nan"),
        ({"variance_power": -1.0}, InvalidValue, "variance_power=-1"),
        ({"stop": "same-sign"}, UnknownName, "'same_sign'"),
        ({"stop": "threshold", "pattern": NM(2, 4)}, InvalidValue, "no effect with 2:4"),
        ({"start": "wnada"}, UnknownName, "'wanda'"),
        ({"start": "snip"}, InvalidValue, "snip is a ModelWide method"),
        ({"start": Wanda(sparsity=0.3), "sparsity": 0.5}, InvalidValue, "start has sparsity=0.3"),
        ({"start": Magnitude(pattern=NM(2, 4))}, InvalidValue, "start has pattern=2:4"),
        ({"updated_weights": True}, InvalidValue, "no effect with start=wanda"),
        ({"sparsity": 1.0}, InvalidValue, "in [0, 1)"),
        ({"sparsity": 0.6, "pattern": NM(2, 4)}, InvalidValue, "contradicts the pattern 2:4"),
    ],
)
def test_wrong_options(options, error, words):
    with pytest.raises(error) as caught:
        DSnoT(**options)
    assert words in str(caught.value)


def test_a_start_made_before_takes_what_dsnot_is_given():
    given = DSnoT(start=SparseGPT(damping=0.1), sparsity=0.7, pattern=Unstructured())
    assert given.start == SparseGPT(damping=0.1, sparsity=0.7, pattern=Unstructured())
    assert catalog.restore(json.loads(json.dumps(catalog.describe(given)))) == given


def test_errors_name_the_layer():
    with pytest.raises(MissingStatistic, match=r"block\.fc1: no InputSum of its input"):
        DSnoT().prune(WEIGHT, layer(kinds=(InputNorm,)))
    with pytest.raises(NonFinite, match=r"block\.fc1: the weight"):
        DSnoT().prune(WEIGHT / 0, layer())
    for kind, what in ((InputSum, "sum"), (InputVariance, "variance"), (InputNorm, "norm")):
        broken = layer()
        broken.statistics[kind][3] = float("nan")
        with pytest.raises(NonFinite, match=rf"block\.fc1: the {what} of its input"):
            DSnoT().prune(WEIGHT, broken)
    with pytest.raises(InvalidValue, match="multiple of 5"):
        DSnoT(pattern=NM(2, 5)).prune(WEIGHT, layer(0.4))


def test_no_data_and_too_short_ones():
    model = tiny_llama()
    with pytest.raises(MissingStatistic, match="no calibration data was given"):
        prune(model, "dsnot")
    with pytest.raises(InvalidValue, match="sequences of at least 2 tokens"):
        prune(model, "dsnot", calibration=[{"input_ids": torch.ones(3, 1, dtype=torch.long)}])
