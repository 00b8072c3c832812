"""Arms beside a method, their records and the report: who is compared with whom, and resumed."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsecraft.core import catalog
from sparsecraft.core.errors import CheckpointError, InvalidValue
from sparsecraft.lab import training_compact, training_runs
from sparsecraft.lab.finished import load_finished
from sparsecraft.lab.report.training_page import (
    ZEROS_ALONE,
    chart,
    forms,
    render,
    speed_words,
    verdict,
    words_of,
)
from sparsecraft.lab.training import TrainSettings
from sparsecraft.lab.training_compact import Removal
from sparsecraft.lab.training_controls import controls, label_of, random_static, settled_density
from sparsecraft.lab.training_latency import measured_latency
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
    assert arms[1].label == "random static, 50% zeros (the static twin too)"
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


def trained_with(tmp_path, name, **options):
    removal = options.pop("removal", Removal())
    made = replace(plan(tmp_path / "out", name, seeds=(0,), **options), removal=removal)
    claim_folder(made)
    first = run_arm(made, Arm(METHOD, name, made.method, made.settings), 0)
    beside, notes = controls(made, *settled_density(made, first))
    records = {METHOD: [first]}
    for arm in beside:
        records[arm.id] = [run_arm(made, arm, 0)]
    arms = [Arm(METHOD, name, made.method, made.settings), *beside]
    latency = measured_latency(made.out, made.task)
    return made, summarise(made, arms, records, notes, latency)


def test_a_small_dense_model_has_as_many_parameters_as_the_method_keeps(tmp_path):
    made, found = trained_with(tmp_path, "rigl")
    by_role = {arm["role"]: arm["runs"][0] for arm in found["arms"]}
    kept, small = by_role["method"]["kept"], by_role["small dense"]
    total = sum(p.numel() for p in made.task.build().parameters())
    masked = sum(p.numel() for n, p in made.task.build().named_parameters() if p.dim() > 1) / 2
    assert kept == pytest.approx(total - masked, abs=2)
    assert small["parameters"] == small["kept"] == pytest.approx(kept, rel=0.03)
    # Its operations are compared with those of the wide model.
    assert 0.3 < small["flops"]["relative"] < 0.7
    assert by_role["dense"]["parameters"] == total
    assert ZEROS_ALONE in " ".join(verdict(found))


def test_without_units_or_from_a_trained_model_there_is_no_small_dense_control(tmp_path):
    arms, notes = controls(plan(tmp_path), 0.5, 3)
    assert [arm.role for arm in arms] == ["dense", "random static"]
    assert "no small dense control: Net cannot be cut to 3 parameters" in notes[0]
    later = plan(tmp_path, settings=replace(SETTINGS, start="trained"))
    arms, notes = controls(later, 0.5, 900)
    assert [arm.role for arm in arms] == ["dense", "random static"]
    assert "begins with a trained model" in notes[0]


def test_a_small_dense_model_that_misses_says_by_how_much(tmp_path):
    arms, notes = controls(plan(tmp_path), 0.9, 150)
    (small,) = [arm for arm in arms if arm.role == "small dense"]
    assert small.parameters == 150
    assert any("and the method keeps 150: no whole widths come nearer" in note for note in notes)


def test_a_mask_made_from_scores_is_shuffled_too(tmp_path):
    scored = plan(tmp_path, "static", source="snip")
    arms, _ = controls(scored, 0.5)
    shuffled = arms[-1]
    assert (shuffled.role, shuffled.label) == (
        "shuffled mask",
        "snip's mask, shuffled in each layer",
    )
    assert shuffled.method == replace(scored.method, shuffled=True)
    assert "shuffled mask" not in roles(plan(tmp_path, "static", source="random"))[0]
    assert label_of(scored.method) == "static (snip)"
    assert label_of(shuffled.method) == "static (snip, shuffled)"
    assert label_of(plan(tmp_path, "static").method) == "static"
    assert "shuffled mask" not in roles(plan(tmp_path, "static", source="snip", shuffled=True))[0]


def test_channels_that_have_gone_leave_a_smaller_model_that_trains_on(tmp_path, monkeypatch):
    removal = Removal(finetune_steps=8)
    made, found = trained_with(tmp_path, "network_slimming", strength=0.05, removal=removal)
    method, compact = found["arms"][0]["runs"][0], found["arms"][1]["runs"][0]
    assert [arm["role"] for arm in found["arms"][:2]] == ["method", "compact"]
    assert found["arms"][1]["label"] == "network_slimming, made smaller, 8 steps more"
    assert compact["units"] == [12, 24]
    assert compact["parameters"] == method["kept"] < method["parameters"]
    assert compact["bytes"] < method["bytes"]
    assert compact["finetune_steps"] == 8
    assert next(step for step, _ in compact["losses"]) == made.settings.steps + 1
    more = compact["flops"]["relative"] - method["flops"]["relative"]
    assert more == pytest.approx(compact["forward_flops"] * 8 / 12, rel=1e-6)
    assert any("8 steps more than the controls" in note for note in found["notes"])
    # What is compared in the end is the smaller model, and the random control has its density.
    assert found["differences_of"] == found["arms"][1]["label"]
    against = {each["against"]: each["estimate"] for each in found["differences"]}
    assert against["dense"] == pytest.approx(compact["test"] - found["arms"][2]["runs"][0]["test"])
    random = next(arm for arm in found["arms"] if arm["role"] == "random static")
    share = 1 - method["kept"] / method["parameters"]
    assert random["runs"][0]["sparsity"] == pytest.approx(share, abs=2e-3)

    smaller = load_finished(made.out / "compact", made.task)
    assert sum(p.numel() for p in smaller.parameters()) == compact["parameters"]
    assert made.task.evaluate(smaller, "test").metric == compact["test"]
    heads, rows = forms(found)
    assert [row[0] for row in rows] == ["dense", "with zeros", "made smaller"]
    assert all(len(row) == len(heads) for row in rows)
    assert "Smaller, and faster?" in render(found, table(found))
    monkeypatch.setattr("sparsecraft.lab.training_latency.interleaved_latency", None)
    assert measured_latency(made.out, made.task) == found["latency"]


def test_a_further_training_that_was_stopped_goes_on(tmp_path, monkeypatch):
    removal = Removal(finetune_steps=8)
    whole = plan(tmp_path / "whole", "network_slimming", seeds=(0,))
    whole = replace(whole, removal=removal, checkpoint_every=4)
    arm = Arm(METHOD, "network_slimming", whole.method, whole.settings)
    expected = run_arm(whole, arm, 0)
    stopped = replace(whole, out=tmp_path / "stopped")
    train, calls = training_compact.train_task, []

    def stop(step, total, loss):
        if step == 5:
            raise KeyboardInterrupt

    def stopping(*args, **options):
        return train(*args, **{**options, "progress": stop})

    monkeypatch.setattr(training_compact, "train_task", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_arm(stopped, arm, 0)
    assert len(list((stopped.out / "checkpoints").glob("*.pt"))) == 2

    def counting(*args, **options):
        told = lambda step, total, loss: calls.append(step)  # noqa: E731
        return train(*args, **{**options, "progress": told})

    monkeypatch.setattr(training_compact, "train_task", counting)
    again = run_arm(stopped, arm, 0)
    assert calls == [5, 6, 7, 8]
    assert again["compact"]["losses"] == expected["compact"]["losses"]
    assert again["compact"]["test"] == expected["compact"]["test"]
    assert list((stopped.out / "checkpoints").glob("*.pt")) == []


def test_a_smaller_model_that_gives_something_else_says_so(tmp_path):
    _, found = trained_with(tmp_path, "network_slimming", strength=0.05)
    assert found["differences_of"] == "network_slimming"
    assert any("gives something else than the one with zeros" in note for note in found["notes"])
    absorbed = Removal(absorb_bias=True)
    _, found = trained_with(
        tmp_path / "absorbed", "network_slimming", strength=0.05, removal=absorbed
    )
    method, compact = found["arms"][0]["runs"][0], found["arms"][1]["runs"][0]
    assert compact["difference"] < 1e-4
    assert compact["test"] == method["test"]
    assert not any("something else" in note for note in found["notes"])


def test_neurons_that_have_gone_leave_a_smaller_model_that_computes_the_same(tmp_path):
    settings = replace(SETTINGS, optimizer="sgd")
    made, found = trained_with(tmp_path, "wgsef", settings=settings)
    method, compact = found["arms"][0]["runs"][0], found["arms"][1]["runs"][0]
    assert compact["units"] == [24, 48]
    assert compact["difference"] < 1e-5
    assert compact["test"] == method["test"]
    assert load_finished(made.out / "compact", made.task).layers[1].out_features == 12


def test_steps_after_a_removal_need_one():
    with pytest.raises(InvalidValue, match="rigl does not remove any"):
        Removal(finetune_steps=5).check(catalog.build("rigl", sparsity=0.5))
    with pytest.raises(InvalidValue, match="wgsef does not"):
        Removal(absorb_bias=True).check(catalog.build("wgsef"))
    Removal(finetune_steps=5, absorb_bias=True).check(catalog.build("network_slimming"))
    Removal(finetune_steps=5).check(catalog.build("wgsef"))


def test_a_folder_of_another_removal_is_kept(tmp_path):
    made = plan(tmp_path / "out", "network_slimming", seeds=(0,))
    claim_folder(made)
    run_arm(made, Arm(METHOD, "network_slimming", made.method, made.settings), 0)
    with pytest.raises(InvalidValue, match="other removal: finetune_steps is 0 there and 4 here"):
        claim_folder(replace(made, removal=Removal(finetune_steps=4)))


@pytest.mark.parametrize(
    ("form", "ratios", "words"),
    [
        ("made smaller", (1.5, 0.9, 2.0), "no speed-up: 1.50 [0.90, 2.00]"),
        ("made smaller", (1.5, 1.0, 2.0), "no speed-up: 1.50 [1.00, 2.00]"),
        ("made smaller", (1.5, 1.2, 2.0), "1.50 [1.20, 2.00]"),
        ("made smaller", (0.8, 0.7, 0.9), "slower: 0.80 [0.70, 0.90]"),
        ("with zeros", (1.5, 1.2, 2.0), "no speed-up: 1.50 [1.20, 2.00]"),
    ],
)
def test_a_speed_up_is_claimed_only_where_every_round_shows_it(form, ratios, words):
    names = ("ratio", "ratio_low", "ratio_high")
    assert speed_words(form, dict(zip(names, ratios, strict=True))) == words
