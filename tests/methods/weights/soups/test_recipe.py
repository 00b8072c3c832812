"""The recipe against a loop by hand; its branches, its settings, its errors."""

import importlib.util
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from sparsecraft.core import catalog
from sparsecraft.core.errors import (
    CheckpointError,
    InvalidValue,
    MissingStatistic,
    SparsityError,
    UnknownName,
)
from sparsecraft.core.mask import Mask, count
from sparsecraft.methods.weights.imp import IterativeMagnitude
from sparsecraft.methods.weights.soups import (
    PredictionEnsemble,
    SparseModelSoup,
    imp_average,
    reprune,
    soup,
)
from sparsecraft.model.pruning import prune

_spec = importlib.util.spec_from_file_location("training", Path(__file__).with_name("training.py"))
task = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(task)

NAMES = ("0.weight", "3.weight")
TOTAL = 5 * 12 + 12 * 4


def made(train=None, directory=None, jobs=1, **options):
    model = task.net()
    recipe = SparseModelSoup(**{"sparsity": 0.8, "phases": 2, "models": 2, **options})
    outcome = recipe.run(
        model,
        task.train if train is None else train,
        recalibrate=task.fresh,
        evaluate=task.evaluate,
        directory=directory,
        jobs=jobs,
    )
    return model, outcome


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_the_phases_are_those_of_a_loop_by_hand():
    model, outcome = made(train := task.Recording())
    by_hand, kept = task.net(), {name: torch.ones_like(task.net().get_parameter(name)).bool()
                                 for name in NAMES}  # fmt: skip
    calls = iter(train.calls)
    for number, phase in enumerate(outcome.phases, 1):
        flat = torch.cat(
            [by_hand.get_parameter(n).abs().flatten()[kept[n].flatten()] for n in NAMES]
        )
        limit = flat.topk(count(TOTAL, 0.2 ** (number / 2))).values.min()
        kept = {n: kept[n] & (by_hand.get_parameter(n).abs() >= limit) for n in NAMES}
        assert phase.mask == Mask(kept)
        before = [p.detach().clone() for p in by_hand.parameters()]
        phase.mask.apply_(dict(by_hand.named_parameters()))
        start = {key: value.clone() for key, value in by_hand.state_dict().items()}
        states = []
        for index in (1, 2):
            branch, settings, mask, state = next(calls)
            assert branch == f"phase {number}, candidate {index}"
            assert same(state, start)
            assert mask == phase.mask
            drop = sum(float((a - b).detach().square().sum())
                       for a, b in zip(before, by_hand.parameters(), strict=True))  # fmt: skip
            norm = sum(float(a.detach().square().sum()) for a in before)
            assert settings["norm_drop"] == pytest.approx(math.sqrt(drop / norm), rel=1e-4)
            twin = task.net()
            twin.load_state_dict(start)
            task.train(twin, mask, branch=branch, **settings)
            states.append({k: v.clone() for k, v in twin.state_dict().items()})
            task.fresh(twin)
            assert same(phase.candidates[index - 1].state, twin.state_dict())
        by_hand.load_state_dict(soup(states, masks=phase.mask))
        task.fresh(by_hand)
        assert same(by_hand.state_dict(), phase.state)
        assert phase.score == task.evaluate(by_hand)
        assert phase.weights == (0.5, 0.5)
    assert same(model.state_dict(), outcome.state)


def test_what_is_pruned_is_a_fraction_of_what_is_left():
    made(train := task.Recording(), phases=3, sparsity=0.9, models=1)
    left, fractions = TOTAL, []
    for number in (1, 2, 3):
        kept = count(TOTAL, 0.1 ** (number / 3))
        fractions.append(1 - kept / left)
        left = kept
    assert [call[1]["pruned_fraction"] for call in train.calls] == pytest.approx(fractions)
    assert fractions == pytest.approx([1 - 0.1 ** (1 / 3)] * 3, abs=0.02)


@pytest.mark.parametrize("choice", ["uniform", "greedy"])
@pytest.mark.parametrize("scope", ["global", "layer", "random"])
def test_a_soup_is_exactly_as_sparse_as_its_candidates(choice, scope):
    model, outcome = made(soup=choice, scope=scope, models=3)
    for phase in outcome.phases:
        for state in [phase.state, *(each.state for each in phase.candidates)]:
            phase.mask.verify(state)
    zeros = sum(int((model.get_parameter(name) == 0).sum()) for name in NAMES)
    assert zeros == TOTAL - outcome.mask.kept
    assert outcome.mask.kept == (count(60, 0.2) + count(48, 0.2) if scope == "layer" else 22)


def test_candidates_differ_only_in_what_varies_and_seeds_in_every_phase():
    options = {"vary": "weight_decay", "values": (0.0, 0.1)}
    _, outcome = made(train := task.Recording(), **options)
    settings = [call[1] for call in train.calls]
    assert [each["weight_decay"] for each in settings] == [0.0, 0.1, 0.0, 0.1]
    assert settings[0]["seed"] == settings[1]["seed"] != settings[2]["seed"]
    one, two = outcome.candidates
    assert not torch.equal(one.state["0.weight"], two.state["0.weight"])
    seeds = [each["seed"] for phase in (1, 2) for each in SparseModelSoup().settings(phase)]
    assert len(set(seeds)) == 6
    assert SparseModelSoup(models=2, values=(0, 1)).settings(1) == SparseModelSoup(
        models=2
    ).settings(1)


def test_one_model_one_phase_is_one_shot_magnitude_and_one_training():
    model, outcome = made(models=1, phases=1)
    twin = task.net()
    report = prune(twin, "global_magnitude", sparsity=0.8)
    assert outcome.mask == report.mask
    task.train(twin, report.mask, branch="by hand", seed=SparseModelSoup().settings(1)[0]["seed"])
    task.fresh(twin)
    assert same(model.state_dict(), twin.state_dict())
    assert outcome.phases[0].weights == (1.0,)


def test_more_compute_on_one_copy_is_a_longer_length():
    _, outcome = made(train := task.Recording(), models=1, vary="length", values=(18,))
    assert [call[1]["length"] for call in train.calls] == [18, 18]
    assert len(outcome.candidates) == 1


def test_greedy_drops_a_candidate_that_harms():
    def train(model, mask=None, *, branch, seed, rate, **settings):
        task.train(model, mask, branch=branch, seed=seed, length=30)
        if rate > 1:  # this copy has learnt nothing
            with torch.no_grad():
                model[3].weight.mul_(-20)

    _, outcome = made(train, soup="greedy", phases=1, vary="rate", values=(0.2, 5.0), sparsity=0.2)
    (phase,) = outcome.phases
    assert phase.weights == (1.0, 0.0)
    assert same(phase.state, phase.candidates[0].state)
    assert phase.score == phase.candidates[0].score > phase.candidates[1].score


def test_a_sparse_model_of_any_method_can_be_branched_without_pruning():
    model = task.net()
    mask = prune(model, "random", sparsity=0.5, seed=1).mask
    recipe = SparseModelSoup(models=2)
    phase = recipe.retrain(model, mask, task.Recording(), recalibrate=task.fresh)
    assert phase.mask is mask
    mask.verify(phase.state)
    assert not {"norm_drop", "pruned_fraction"} & phase.candidates[0].settings.keys()


def test_a_killed_run_resumes_inside_a_phase_without_training_again(tmp_path):
    _, whole = made(directory=tmp_path / "whole")
    for finished in range(4):
        folder = tmp_path / str(finished)
        with pytest.raises(KeyboardInterrupt):
            made(task.Recording(fail_at=finished), directory=folder)
        again = task.Recording()
        model, resumed = made(again, directory=folder)
        assert len(again.calls) == 4 - finished
        assert resumed.mask == whole.mask
        assert same(resumed.state, whole.state)
        assert same(model.state_dict(), whole.state)


def test_what_is_kept_on_disk_says_what_it_is(tmp_path):
    _, outcome = made(directory=tmp_path)
    assert len(list(tmp_path.glob("phase_1-candidate_*.safetensors"))) == 2
    record = json.loads((tmp_path / "phase_2.json").read_text())
    assert record["kept"] == outcome.mask.kept
    assert [each["weight"] for each in record["candidates"]] == [0.5, 0.5]
    assert record["score"] == outcome.phases[-1].score
    from safetensors import safe_open

    with safe_open(str(tmp_path / "phase_2-mask.safetensors"), "pt") as file:
        bits = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert Mask.unpacked(bits, file.metadata()) == outcome.mask


@pytest.mark.parametrize("options", [{"seed": 5}, {"sparsity": 0.7}])
def test_another_recipe_takes_up_nothing(tmp_path, options):
    made(directory=tmp_path)
    again = task.Recording()
    made(again, directory=tmp_path, **options)
    assert len(again.calls) == 4


def test_a_damaged_branch_is_named(tmp_path):
    made(directory=tmp_path)
    path = next(tmp_path.glob("phase_1-candidate_1-*.safetensors"))
    path.write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"Remove it, and the branch is trained again"):
        made(directory=tmp_path)


@pytest.mark.slow
def test_branches_side_by_side_give_the_same(tmp_path):
    pytest.importorskip("joblib")
    _, one = made()
    _, two = made(jobs=2, directory=tmp_path)
    assert same(one.state, two.state)


def test_shared_weights_survive_the_round_trip(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 5)
            self.last.weight = self.first.weight

        def forward(self, x):
            return self.last(self.first(x).relu())

    model = Tied()
    outcome = SparseModelSoup(sparsity=0.5, phases=1, models=2).run(
        model, task.train, directory=tmp_path
    )
    assert model.first.weight is model.last.weight
    assert torch.equal(outcome.state["first.weight"], outcome.state["last.weight"])
    assert int((model.last.weight == 0).sum()) == 25 - outcome.mask.kept == 12


def test_the_ensemble_averages_probabilities():
    _, outcome = made()
    states = [each.state for each in outcome.candidates]
    ensemble = PredictionEnsemble(task.net(), states).eval()
    members = []
    for state in states:
        twin = task.net().eval()
        twin.load_state_dict(state)
        members.append(twin(task.INPUTS).softmax(1))
    torch.testing.assert_close(ensemble(task.INPUTS).exp(), (members[0] + members[1]) / 2)
    with pytest.raises(InvalidValue, match="at least 1 member"):
        PredictionEnsemble(task.net(), [])


def test_independent_runs_average_to_something_denser_and_can_be_pruned_again():
    runs = []
    for seed in (1, 2):
        model = task.net()
        recipe = SparseModelSoup(sparsity=0.8, models=1, vary="length", values=(40,), seed=seed)
        runs.append(recipe.run(model, task.train))
    model = task.net()
    union = imp_average(model, runs, task.fresh)
    assert union.kept > runs[0].mask.kept
    assert sum(int((model.get_parameter(n) != 0).sum()) for n in NAMES) == union.kept
    mask = reprune(model, 0.8, union, task.fresh)
    assert mask.kept == runs[0].mask.kept
    mask.verify(dict(model.named_parameters()))
    with pytest.raises(MissingStatistic, match="recalibrate"):
        imp_average(model, runs)


def test_a_training_without_the_keywords_is_told_which():
    def train(model, mask=None, *, branch):
        raise AssertionError("not reached")

    with pytest.raises(InvalidValue, match=r"\['seed', 'norm_drop', 'pruned_fraction'\]"):
        made(train)


def test_a_training_that_revives_weights_is_refused():
    def train(model, mask=None, *, branch, **settings):
        task.train(model, None, branch=branch, **settings)

    with pytest.raises(InvalidValue, match="did not hold the mask in 'phase 1, candidate 1'"):
        made(train)


def test_needs_are_checked_before_any_training():
    train = task.Recording()
    with pytest.raises(MissingStatistic, match="held-out data"):
        SparseModelSoup(soup="greedy").run(task.net(), train, recalibrate=task.fresh)
    model = task.net()
    with pytest.raises(MissingStatistic, match="batch normalisation"):
        SparseModelSoup().run(model, train)
    assert train.calls == []
    assert same(model.state_dict(), task.net().state_dict())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"sparsity": 0.0}, InvalidValue, "prunes nothing"),
        ({"sparsity": 1.0}, InvalidValue, "in \\[0, 1\\)"),
        ({"phases": 0}, InvalidValue, "phases=0"),
        ({"models": 0}, InvalidValue, "models=0"),
        ({"vary": "momentum"}, UnknownName, "weight_decay"),
        ({"soup": "learnt"}, UnknownName, "greedy"),
        ({"scope": "block"}, UnknownName, "global"),
        ({"vary": "rate"}, InvalidValue, "one for each of the 3 models"),
        ({"values": (1, 2)}, InvalidValue, "2 values of seed for 3 models"),
        ({"values": (1, 2, 2)}, InvalidValue, "hold one twice"),
        ({"values": "1,2,3"}, InvalidValue, "tuple of numbers"),
    ],
)
def test_settings_are_checked(settings, error, message):
    with pytest.raises(error, match=message):
        SparseModelSoup(**settings)


def test_jobs_are_checked():
    with pytest.raises(InvalidValue, match="jobs=0"):
        made(jobs=0)


def test_it_is_in_the_catalog_and_prune_says_where_it_belongs():
    chosen = catalog.build("sparse_model_soup", models="2", vary="rate", values=(0.1, 0.2))
    assert catalog.restore(json.loads(json.dumps(catalog.describe(chosen)))) == chosen
    with pytest.raises(SparsityError, match="is a Recipe method"):
        prune(task.net(), "sparse_model_soup")


def test_masks_are_those_of_iterative_magnitude_without_rewinding():
    """With trainings that change nothing, rewinding makes no difference."""

    def nothing(model, mask=None, *, branch, **settings):
        return None

    outcome = SparseModelSoup(sparsity=0.8, models=1).run(task.net(), nothing)
    tickets = IterativeMagnitude(sparsity=0.8, rounds=3).run(task.net(), nothing)
    assert [phase.mask for phase in outcome.phases] == list(tickets.masks)
