"""Arms beside a method, their records and the report: who is compared with whom, and resumed."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from sparsecraft.core import catalog
from sparsecraft.core.errors import CheckpointError, InvalidValue
from sparsecraft.lab import training_runs
from sparsecraft.lab.report.training_page import chart, words_of
from sparsecraft.lab.training import TrainSettings
from sparsecraft.lab.training_controls import controls, random_static
from sparsecraft.lab.training_runs import METHOD, Arm, Plan, claim_folder, run_arm
from sparsecraft.lab.training_summary import summarise, table, write_report
from sparsecraft.methods.weights.static import Static
from sparsecraft.model.checkpoints import read_mask

_spec = importlib.util.spec_from_file_location(
    "training_killed_runs", Path(__file__).with_name("training_killed.py")
)
tiny = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(tiny)

SETTINGS = TrainSettings(steps=12, batch_size=16, learning_rate=5e-3)


def plan(out, name="rigl", settings=SETTINGS, seeds=(0, 1), **options):
    given = {"sparsity": 0.5, **({"every": 3} if name in ("rigl", "set") else {}), **options}
    return Plan(
        task=tiny.Stripes(),
        method=catalog.build(name, **given),
        settings=settings,
        targets=None,
        seeds=seeds,
        controls=True,
        out=out,
    )


def roles(made):
    arms, notes = controls(made, 0.5)
    return [arm.role for arm in arms], notes


def run_all(made):
    arms = [Arm(METHOD, made.method.info.name, made.method, made.settings)]
    beside, notes = controls(made, 0.5)
    arms += beside
    records = {arm.id: [run_arm(made, arm, seed) for seed in made.seeds] for arm in arms}
    return summarise(made, arms, records, notes)


def test_a_dynamic_method_whose_start_is_random_has_one_control_for_both(tmp_path):
    made = plan(tmp_path)
    arms, notes = controls(made, 0.5)
    assert [arm.role for arm in arms] == ["dense", "random static"]
    assert arms[1].label == "random static, 50% zeros: the static twin too"
    assert arms[1].method.start() == made.method.start()
    assert notes == []


def test_another_start_has_a_twin_of_its_own(tmp_path):
    class Own(type(plan(tmp_path).method)):
        def start(self):
            return catalog.build("magnitude", sparsity=0.5)

    made = plan(tmp_path)
    object.__setattr__(made, "method", Own(sparsity=0.5, every=3))
    assert roles(made) == (["dense", "random static", "static twin"], [])


def test_what_a_method_cannot_be_compared_with_is_said(tmp_path):
    names, notes = roles(plan(tmp_path, "sr_ste", pattern="2:4"))
    assert names == ["dense", "random static"]
    assert "begins dense, so that it has no static twin" in notes[0]
    names, notes = roles(plan(tmp_path, "static"))
    assert names == ["dense"]
    assert notes == ["the method is itself the random static control"]
    arms, notes = controls(plan(tmp_path), 0.0)
    assert [arm.role for arm in arms] == ["dense"]
    assert "leaves no zeros" in notes[0]


def test_the_random_control_has_the_pattern_and_allocation_of_the_method(tmp_path):
    uniform = catalog.build("rigl", sparsity=0.8, allocation="uniform")
    assert random_static(uniform, 0.8) == Static(
        source=catalog.build("random", sparsity=0.8, allocation="uniform")
    )
    nm = random_static(catalog.build("sr_ste", pattern="1:4"), 0.75)
    assert str(nm.start().pattern) == "1:4"
    assert nm.density == 0.25


def test_controls_of_a_method_with_its_own_optimiser_and_teacher_say_so(tmp_path):
    settings = TrainSettings(steps=12, optimizer="adams", learning_rate=1e-3)
    arms, notes = controls(plan(tmp_path, "cast", settings=settings), 0.5)
    assert {arm.settings.optimizer for arm in arms} == {"adamw"}
    assert {arm.settings.peak for arm in arms} == {1e-3}
    assert any("adamw" in note for note in notes)
    assert any("dense teacher" in note for note in notes)


def test_the_report_holds_what_the_handbook_asks_for(tmp_path):
    made = plan(tmp_path / "out")
    claim_folder(made)
    found = run_all(made)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    rigl, dense, random = found["arms"]
    for arm in found["arms"]:
        assert [run["seed"] for run in arm["runs"]] == [0, 1]
    first = rigl["runs"][0]
    assert first["asked"] == 0.5
    assert first["sparsity"] == pytest.approx(0.5, abs=1e-3)
    assert first["flops"]["relative"] > random["runs"][0]["flops"]["relative"]
    assert 0 < random["runs"][0]["flops"]["relative"] < dense["runs"][0]["flops"]["relative"] == 1
    assert first["masks"]["itop"] > 0.5 == random["runs"][0]["masks"]["itop"]
    assert first["masks"]["jaccard"] < 1 == random["runs"][0]["masks"]["jaccard"]
    assert first["masks"]["updates"] > 0 == random["runs"][0]["masks"]["updates"]
    assert first["masks"]["effective_density"] <= 0.5 + 1e-3
    assert "simulated" in first["runtime"]
    assert dense["runs"][0]["runtime"] == "dense kernels"
    assert {row["name"] for row in first["left_out"]} >= {"layers.2.weight", "layers.1.bias"}
    assert {"nll", "ece", "worst_class", "peak_bytes", "stored_bytes", "seconds"} <= first.keys()
    assert [each["n"] for each in found["differences"]] == [2, 2]

    heads, rows = table(found)
    assert len(rows) == 3
    assert all(len(row) == len(heads) for row in rows)
    assert "±" in rows[0][heads.index("accuracy")]
    assert rows[1][heads.index("training FLOPs")] == "1.00x"
    for path in write_report(found, made.out):
        text = path.read_text()
        assert "rigl" in text
        assert "http://" not in text.replace("http://www.w3.org", "")
    mask = read_mask(made.out / "model" / "masks.safetensors")
    assert mask.density == pytest.approx(0.5, abs=1e-3)


def test_finished_trainings_are_not_trained_again(tmp_path, monkeypatch):
    made = plan(tmp_path / "out", seeds=(0,))
    claim_folder(made)
    first = run_all(made)
    monkeypatch.setattr(training_runs, "train_task", None)
    assert run_all(made) == first
    assert list((made.out / "checkpoints").glob("*.pt")) == []


def test_a_folder_of_other_trainings_is_kept(tmp_path):
    made = plan(tmp_path / "out", seeds=(0,))
    claim_folder(made)
    claim_folder(made)
    run_arm(made, Arm(METHOD, "rigl", made.method, made.settings), 0)
    with pytest.raises(InvalidValue, match=r"another method: sparsity is 0\.5 there and 0\.6"):
        claim_folder(plan(made.out, sparsity=0.6))
    with pytest.raises(InvalidValue, match="another method: method is 'rigl' there and 'set'"):
        claim_folder(plan(made.out, "set"))
    longer = TrainSettings(steps=13, batch_size=16, learning_rate=5e-3)
    with pytest.raises(InvalidValue, match="other settings: steps is 12 there and 13 here"):
        claim_folder(plan(made.out, settings=longer))
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    with pytest.raises(CheckpointError, match="not empty"):
        claim_folder(plan(other))


def test_a_folder_where_nothing_began_may_change_its_mind(tmp_path):
    claim_folder(plan(tmp_path / "out"))
    claim_folder(plan(tmp_path / "out", "set"))
    assert json.loads((tmp_path / "out" / "train.json").read_text())["method"]["method"] == "set"


def test_differences_have_an_interval_only_where_one_can_be_formed():
    one = {"estimate": 0.01, "low": None, "high": None, "n": 1}
    assert words_of(one) == "0.0100, 1 seed: no interval, nothing is known of the spread"
    assert "no interval can be formed" in words_of({**one, "n": 2})
    assert words_of({"estimate": 0.1, "low": 0.05, "high": 0.15, "n": 3}) == (
        "0.1000 [0.0500, 0.1500], 3 seeds"
    )


def test_equal_differences_give_no_interval_of_width_zero():
    from sparsecraft.lab.training_summary import _difference

    assert _difference([0.5, 0.7], [0.4, 0.6])["low"] is None
    assert _difference([0.5], [0.4])["low"] is None
    assert _difference([0.5, 0.8], [0.4, 0.6])["low"] is not None


def test_curves_are_drawn_from_what_was_told():
    drawn = chart([[[0, 1.0], [10, 0.5]], []], "density")
    assert drawn.count("<polyline") == 1
    assert drawn.startswith("<svg")


def test_the_first_seed_keeps_its_model_and_later_ones_do_not_replace_it(tmp_path):
    made = plan(tmp_path / "out")
    claim_folder(made)
    arm = Arm(METHOD, "rigl", made.method, made.settings)
    run_arm(made, arm, 0)
    before = (made.out / "model" / "model.safetensors").read_bytes()
    run_arm(made, arm, 1)
    assert (made.out / "model" / "model.safetensors").read_bytes() == before
    assert torch.get_num_threads() == 1
