"""Comparisons on a small trained network, from settings to report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sparsecraft.core import catalog
from sparsecraft.core.errors import InvalidValue, NonFinite, SparsityError, StoreError, UnknownName
from sparsecraft.lab.arms import Workbench
from sparsecraft.lab.compare import compare, redraw
from sparsecraft.lab.forms import packed_size
from sparsecraft.lab.grid import Cell, plan, validate
from sparsecraft.lab.settings import CompareSettings
from sparsecraft.lab.store import RunStore
from sparsecraft.lab.tasks.digits import DigitsMLP
from sparsecraft.model.packed import packed_bytes
from sparsecraft.model.pruning import prune

GRID = {
    "methods": ("magnitude", "wanda"),
    "patterns": ("unstructured", "2:4"),
    "sparsities": (0.3, 0.5, 0.7),
    "seeds": 2,
    "calibration_tokens": 64,
    "distill_steps": 5,
    "rounds": 3,
    "progress": False,
}
QUICK = GRID | {"methods": ("wanda",), "patterns": ("unstructured",), "sparsities": (0.5,)}
SPARSEST = {"prefer": "sparsity", "max_drop": 0.9, "ffn_keep": 1.0}

OWN = '''
from dataclasses import dataclass
from sparsecraft.core.catalog import Paper, Taxonomy, method
from sparsecraft.core.kinds import Layerwise, Pruned


@method("biggest", paper=Paper("Nobody", 2026), taxonomy=Taxonomy(
    of="weights", when="after training", start_to_end="dense to sparse", mask="static",
    criterion="magnitude", granularity=("unstructured",), allocation="any",
    budget="hard per layer", needs=(), cost="none", runtime="none"))
@dataclass(frozen=True, kw_only=True)
class Biggest(Layerwise):
    """Keeps the biggest weights."""

    def prune(self, weight, layer):
        mask = self.pattern.mask(weight.abs(), layer.density)
        return Pruned(weight * mask, mask)
'''


class Stopping(DigitsMLP):
    """The same task, whose evaluation is interrupted after some models."""

    def __init__(self, after: int) -> None:
        super().__init__(steps=80)
        self.left = after

    def evaluate_both(self, model, progress=None):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return super().evaluate_both(model, progress)


class Breaking(DigitsMLP):
    """The same task, on which models with half of their weights or fewer are not finite."""

    def evaluate(self, model, split, progress=None):
        weights = [p for n, p in model.named_parameters() if n.endswith("weight") and p.dim() == 2]
        if weights and sum(int((p == 0).sum()) for p in weights) > 0.6 * sum(
            p.numel() for p in weights
        ):
            raise NonFinite("3 of 9 examples gave NaN")
        return super().evaluate(model, split, progress)


@pytest.fixture(scope="module", autouse=True)
def task_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSECRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def task(task_cache) -> DigitsMLP:
    return DigitsMLP(steps=80)


@pytest.fixture(scope="module")
def finished(task, tmp_path_factory):
    return compare(task=task, out=tmp_path_factory.mktemp("out") / "full", **GRID)


def outcomes(directory: Path) -> dict[str, tuple]:
    """Everything of the runs that does not depend on the clock, by run."""
    store = RunStore.read(directory)
    found = {}
    for run in store.runs():
        mask = store.get(run.config, mask=True).mask or {}
        metrics = {k: v for k, v in run.metrics.items() if k not in CLOCKED}
        metrics["notes"] = [
            note for note in run.metrics.get("notes", []) if "distilled" not in note
        ]
        metrics.pop("distillation", None)
        examples = {split: values.tolist() for split, values in run.examples.items()}
        masks = {name: keep.tolist() for name, keep in mask.items()}
        found[store.path(run.config).name] = (metrics, examples, masks)
    return found


CLOCKED = ("seconds", "prune_seconds", "peak_memory_bytes")


def arm(record, name: str) -> dict:
    return next(each for each in record["arms"] if each["id"] == name)


def test_every_control_and_every_cell_is_there(finished):
    found = {each["id"]: len(each["runs"]) for each in finished.record["arms"]}
    names = ("magnitude", "wanda", "random")
    grid = {f"{name}/unstructured/{s}" for name in names for s in (0.3, 0.5, 0.7)}
    grid |= {f"{m}/2:4/0.5" for m in names}
    assert set(found) == {"dense", "int8", "compact", "compact-int8"} | grid
    assert {n for name, n in found.items() if name.startswith("magnitude")} == {1}
    assert {n for name, n in found.items() if name.startswith(("wanda", "random"))} == {2}
    assert [each["id"] for each in finished.record["arms"]][:2] == ["dense", "int8"]


def test_asked_and_achieved_stand_side_by_side(finished):
    found = arm(finished.record, "wanda/2:4/0.5")
    assert found["asked"] == found["sparsity"] == 0.5
    assert {layer["achieved"] for layer in found["layers"]} == {0.5}
    assert len(found["layers"]) == sum(row["targeted"] for row in finished.record["targets"])
    assert 0 < found["sparsity_all"] < 0.5  # biases stay
    assert found["flops"]["effective"] == found["flops"]["dense"] / 2


def test_calibration_is_drawn_anew_for_each_seed(finished, task):
    store = RunStore.read(finished.report.parent)
    bench = Workbench(task, CompareSettings(task=task.name, **GRID))
    cells = [
        Cell(kind="sparse", method="wanda", pattern="unstructured", sparsity=0.5, seed=seed)
        for seed in (0, 1)
    ]
    first, second = (store.get(bench.config(cell), mask=True).mask for cell in cells)
    assert first is not None
    assert second is not None
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_the_smaller_arm_is_physically_smaller_and_distilled(finished):
    dense, compact = (arm(finished.record, name) for name in ("dense", "compact"))
    assert compact["bytes"]["plain"] < 0.5 * dense["bytes"]["plain"]
    assert compact["flops"]["effective"] < 0.5 * dense["flops"]["effective"]
    assert compact["test"] > 0.8 * dense["test"]
    assert "distilled in 5 steps" in compact["note"]
    quantised = arm(finished.record, "compact-int8")
    assert quantised["bytes"]["plain"] < compact["bytes"]["plain"]
    assert quantised["sparsity_all"] == compact["sparsity_all"] > 0.5


def test_every_arm_is_timed_beside_dense(finished):
    for each in finished.record["arms"]:
        assert set(each["latency"]) == {"1", "32"}
        for batch in each["latency"].values():
            assert batch["rounds"] == 3
            assert batch["ms_low"] <= batch["ms"] <= batch["ms_high"]
            assert batch["dense_ms"] > 0


def test_packed_bytes_are_those_of_the_packed_file(task):
    model = task.load_model()
    mask = prune(model, "magnitude", sparsity=0.7).mask
    file = packed_bytes(model)
    assert packed_size(model, mask) == pytest.approx(file, abs=2000)  # but for the header


def test_drops_are_those_of_the_test_half(finished, task):
    dense, other = (arm(finished.record, name) for name in ("dense", "magnitude/unstructured/0.7"))
    assert other["drop"]["n"] == len(task.images["test"])
    assert other["drop"]["estimate"] == pytest.approx(1 - other["test"] / dense["test"])
    assert dense["drop"] | {"method": "", "n": 0} == {
        "estimate": 0, "low": 0, "high": 0, "method": "", "n": 0,
    }  # fmt: skip


def test_the_winner_is_saved_whole(finished):
    choice = finished.record["choice"]
    assert choice["winner"] in {each["id"] for each in finished.record["arms"]}
    assert not choice["winner"].startswith("random")
    assert finished.model == Path(choice["saved_to"])
    saved = json.loads((finished.model / "sparsecraft_config.json").read_text())
    assert Cell(**saved["compared"]).arm == choice["winner"]
    assert load_file(finished.model / "model.safetensors")
    assert any(str(finished.model) in line for line in choice["lines"])


def test_a_sparse_winner_is_its_stored_mask(task, tmp_path):
    found = compare(task=task, out=tmp_path / "o", **QUICK | SPARSEST)
    assert found.record["choice"]["winner"] == "wanda/unstructured/0.5"
    assert found.model is not None
    weights = load_file(found.model / "model.safetensors")
    matrices = [weight for weight in weights.values() if weight.dim() == 2]
    zeros = sum(int((weight == 0).sum()) for weight in matrices)
    assert zeros == pytest.approx(0.5 * sum(weight.numel() for weight in matrices), abs=4)


def test_a_winner_that_comes_out_different_is_not_saved(task, tmp_path):
    options = QUICK | {
        "prefer": "sparsity",
        "max_drop": 0.9,
        "ffn_keep": 1.0,
        "out": tmp_path / "o",
    }
    first = compare(task=task, **options)
    shutil.rmtree(first.model)
    run = next((tmp_path / "o" / "runs").glob("sparse-wanda-*-s0-*"))
    other = next((tmp_path / "o" / "runs").glob("sparse-wanda-*-s1-*"))
    shutil.copy(other / "mask.safetensors", run / "mask.safetensors")
    second = compare(task=task, **options)
    assert second.model is None
    assert not first.model.exists()
    assert any("came out different" in problem for problem in second.record["problems"])


def test_files_beside_the_report(finished):
    out = finished.report.parent
    assert finished.report.name == "report.html"
    record = json.loads((out / "comparison.json").read_text())
    assert [each["id"] for each in record["arms"]] == [e["id"] for e in finished.record["arms"]]
    assert len((out / "results.csv").read_text().splitlines()) > 100


def test_knees_come_from_curves_with_enough_points(finished):
    found = {(knee["method"], knee["pattern"]) for knee in finished.record["knees"]}
    assert found == {(m, "unstructured") for m in ("magnitude", "wanda", "random")}
    for knee in finished.record["knees"]:
        assert 0 <= knee["low"] <= knee["knee"] <= knee["high"] <= 0.7


def test_a_finished_comparison_is_not_run_again(finished, monkeypatch, task):
    def never(*_):
        raise AssertionError("evaluated again")

    monkeypatch.setattr(DigitsMLP, "evaluate_both", never)
    before = outcomes(finished.report.parent)
    again = compare(task=task, out=finished.report.parent, prefer="size", **GRID)
    assert outcomes(finished.report.parent) == before
    assert again.record["choice"]["prefer"] == "size"


@pytest.mark.parametrize("after", [2, 23])
def test_interrupted_and_resumed_equals_uninterrupted(finished, tmp_path, after):
    with pytest.raises(KeyboardInterrupt):
        compare(task=Stopping(after), out=tmp_path / "o", **GRID)
    assert len(RunStore.read(tmp_path / "o").runs()) == after
    compare(task=Stopping(-1), out=tmp_path / "o", **GRID)
    assert outcomes(tmp_path / "o") == outcomes(finished.report.parent)


def test_an_interruption_says_how_to_go_on(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        compare(task=Stopping(2), out=tmp_path / "o", **QUICK | {"progress": True})
    said = " ".join(capsys.readouterr().err.split())
    assert "2 of 8 runs are kept" in said
    assert "the same command goes on" in said


def test_two_jobs_give_what_one_gives(finished, task, tmp_path):
    found = compare(task=task, out=tmp_path / "o", jobs=2, **GRID)
    assert outcomes(tmp_path / "o") == outcomes(finished.report.parent)
    assert [a["id"] for a in found.record["arms"]] == [a["id"] for a in finished.record["arms"]]


def test_a_report_is_redrawn_from_the_store_alone(finished, tmp_path):
    copied = Path(shutil.copytree(finished.report.parent, tmp_path / "copy"))
    for path in (*copied.glob("*.html"), *copied.glob("*.csv"), copied / "comparison.json"):
        path.unlink()
    assert redraw(copied) == copied / "report.html"
    record = json.loads((copied / "comparison.json").read_text())
    assert arm(record, "compact")["test"] == arm(finished.record, "compact")["test"]


def test_half_a_comparison_has_a_report_too(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        compare(task=Stopping(3), out=tmp_path / "o", **QUICK)
    redraw(tmp_path / "o")
    record = json.loads((tmp_path / "o" / "comparison.json").read_text())
    assert len(record["arms"]) == 3
    with pytest.raises(StoreError, match="not a run store"):
        redraw(tmp_path)


def test_ones_own_method_from_a_file(task, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    options = QUICK | {"methods": ("magnitude", f"{path}:Biggest"), "out": tmp_path / "o"}
    found = compare(task=task, **options)
    mine, theirs = (
        arm(found.record, f"{name}/unstructured/0.5") for name in ("Biggest", "magnitude")
    )
    assert mine["test"] == theirs["test"]
    path.write_text(OWN.replace("weight.abs()", "-weight.abs()"))
    with pytest.raises(StoreError, match="own methods was"):
        compare(task=task, **options)


def test_a_model_that_breaks_is_reported_and_the_rest_goes_on(tmp_path):
    found = compare(
        task=Breaking(steps=80), out=tmp_path / "o", **QUICK | {"sparsities": (0.5, 0.7)}
    )
    broken = arm(found.record, "wanda/unstructured/0.7")
    assert broken["runs"] == []
    assert "gave NaN" in broken["note"]
    assert any("wanda 70 %" in problem for problem in found.record["problems"])
    assert arm(found.record, "wanda/unstructured/0.5")["runs"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ("wandaa",)}, "Did you mean 'wanda'"),
        ({"methods": ("./nowhere.py:Mine",)}, "there is no file"),
        ({"patterns": ("unstructurd",)}, "Did you mean 'unstructured'"),
        ({"patterns": ("2:5",)}, "needs a multiple of 5 inputs"),
        ({"sparsities": (1.5,)}, "fraction of zeros"),
        ({"sparsities": (0.0,)}, "sparsity 0 is the dense model"),
        ({"sparsities": ()}, "sparsities is empty"),
        ({"targets": ("*.nothing",)}, "match no layer"),
        ({"max_drop": "300%"}, "max_drop=3"),
        ({"prefer": "beauty"}, "Unknown prefer"),
        ({"dtype": "float8"}, "Unknown dtype"),
        ({"device": "tpu9"}, "device='tpu9'"),
        ({"seeds": 0}, "seeds=0"),
        ({"jobs": 0}, "jobs=0"),
        ({"sede": 1}, "Did you mean 'seeds'"),
        ({"text": "notes.txt"}, "leave model and text out"),
    ],
)
def test_mistakes_are_named_before_anything_is_done(task, tmp_path, changes, message):
    with pytest.raises(SparsityError, match=message):
        compare(task=task, **QUICK | {"out": tmp_path / "o"} | changes)
    assert not (tmp_path / "o").exists()


def test_an_output_folder_with_other_things_is_kept(task, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match="is kept"):
        compare(task=task, out=tmp_path, **QUICK)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    compare(task=task, out=tmp_path, overwrite=True, **QUICK)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(StoreError, match="calibration_tokens was 64, now 32"):
        compare(task=task, out=tmp_path, **QUICK | {"calibration_tokens": 32})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text": "x.txt"}, "no model"),
        ({"model": "m"}, "add --text FILE"),
        ({"model": "m", "text": "nowhere.txt"}, "there is no text file"),
        ({"model": "m", "text": "x", "task": "digits-mlp"}, "not both"),
        ({"ffn_keep": 0.0}, "ffn_keep=0"),
        ({"distill_seconds": 0.0}, "distill_seconds"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(InvalidValue, match=message):
        CompareSettings(**settings)


def test_tasks_by_unknown_names(tmp_path):
    with pytest.raises(UnknownName, match="docs-retrieval"):
        compare(task="docs-retrievel", out=tmp_path / "o")


def test_gradient_methods_need_a_loss(task):
    settings = CompareSettings(task=task.name, **QUICK | {"methods": ("snip",)})
    cells, model = plan(settings), task.load_model()
    validate(cells, model, settings, has_loss=True)
    with pytest.raises(InvalidValue, match="no labels"):
        validate(cells, model, settings, has_loss=False)


def test_methods_that_train_are_refused():
    kinds = ("Layerwise", "ModelWide")
    in_training = next(info.name for info in catalog.select() if info.kind not in kinds)
    with pytest.raises(InvalidValue, match="compare takes Layerwise and ModelWide"):
        plan(CompareSettings(methods=(in_training,)))


def test_random_stands_at_every_density_once_even_if_asked_for():
    settings = CompareSettings(methods=("random", "magnitude"), patterns=("unstructured", "1:4"))
    cells = plan(settings)
    controls = [cell for cell in cells if cell.method == "random"]
    assert {(cell.pattern, cell.sparsity) for cell in controls} == {
        ("unstructured", 0.3), ("unstructured", 0.5), ("unstructured", 0.7), ("1:4", 0.75),
    }  # fmt: skip
    assert {cell.seed for cell in controls} == {0, 1}
    assert len(cells) == len(set(cells))


def test_unstructured_means_each_methods_own_form_of_it():
    forms = [
        str(Cell(kind="sparse", method=name, pattern="unstructured", sparsity=0.5).build().pattern)
        for name in ("wanda", "magnitude")
    ]
    assert forms == ["row", "unstructured"]


def test_the_command_repeats_the_settings():
    assert CompareSettings().command() == "sparsecraft compare"
    settings = CompareSettings(
        model="org/m", task="digits-mlp", methods=("wanda",), targets=("*.mlp.*", "!*.0.*"), jobs=2
    )
    assert settings.command() == (
        'sparsecraft compare org/m --task digits-mlp --method wanda --targets "*.mlp.*,!*.0.*" '
        "--jobs 2"
    )


def test_smoke_is_the_smallest_of_everything():
    settings = CompareSettings(setting="smoke", sparsities=(0.2, 0.4)).actual
    assert settings.sparsities == (0.5,)
    assert settings.distill_steps == 2
    assert CompareSettings().actual == CompareSettings()


def test_seeds_do_not_share_streams(finished):
    runs = [run.config | {"test": run.examples["test"]} for run in stored(finished)]
    random = [run for run in runs if run["method"] == "random" and run["sparsity"] == 0.7]
    assert [run["seed"] for run in random] == [0, 1]
    assert not np.array_equal(random[0]["test"], random[1]["test"])


def stored(finished) -> list:
    return RunStore.read(finished.report.parent).runs()
