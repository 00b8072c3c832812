"""Statistics in a folder: the same masks without a pass, and nothing that does not belong."""

import json

import pytest
import torch
from tests.models import batches_for, tiny_llama, tiny_mixtral

from sparsecraft import prune
from sparsecraft.core.errors import CheckpointError, InvalidValue, MissingStatistic


def run(folder, method="dsnot", *, seed=0, batches=None, model=None, **options):
    model = tiny_llama(seed) if model is None else model
    data = batches_for(model) if batches is None else batches
    return prune(model, method, calibration=data, statistics=folder, sparsity=0.5, **options)


def refuse_to_run(model):
    """Lets every forward pass of the blocks fail."""

    def fail(*_):
        raise AssertionError("data passed the model")

    for block in model.model.layers:
        block.register_forward_pre_hook(fail)
    return model


def test_other_settings_run_without_a_pass(tmp_path):
    folder = tmp_path / "kept"
    first = run(folder)
    again = run(folder, model=refuse_to_run(tiny_llama()))
    assert again.mask == first.mask
    assert again.notes == (f"statistics taken from {folder}; no data passed the model",)
    other = run(folder, model=refuse_to_run(tiny_llama()), cycles=0)
    assert other.mask != first.mask
    assert "as they were while pruning with dsnot (sparsity=0.5, pattern=row)" in other.notes[0]


def test_another_method_takes_what_it_needs(tmp_path):
    folder = tmp_path / "kept"
    run(folder, start="sparsegpt")
    for method in ("wanda", "sparsegpt"):
        report = run(folder, method, model=refuse_to_run(tiny_llama()))
        # Of the first block alone: behind it the inputs are those of the other pruning.
        alone = run(None, method).mask
        for name in ("q_proj", "o_proj"):
            key = f"model.layers.0.self_attn.{name}.weight"
            assert torch.equal(report.mask[key], alone[key])


def test_layers_that_share_an_input_share_what_is_written(tmp_path):
    run(tmp_path / "kept", start="sparsegpt")
    about = json.loads((tmp_path / "kept/statistics.json").read_text())
    values = about["stages"][0]["values"]
    layers = "model.layers.0.self_attn."
    assert values[f"{layers}k_proj"] == values[f"{layers}v_proj"] == f"{layers}q_proj"
    assert about["statistics"] == ["Hessian", "InputNorm", "InputSum", "InputVariance"]


def test_experts_that_no_token_reached_stay_unreached(tmp_path):
    batches = [{"input_ids": torch.full((1, 3), 5)}]
    reports = [
        run(tmp_path / "kept", batches=batches, model=tiny_mixtral(), targets="*.experts*")
        for _ in range(2)
    ]
    unreached = [[n for n in r.notes if "no calibration token" in n] for r in reports]
    assert unreached[0] and unreached[0] == unreached[1]
    assert reports[0].mask == reports[1].mask


def test_a_run_that_was_killed_leaves_a_folder_that_is_gathered_anew(tmp_path):
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "0000.safetensors").write_bytes(b"half")
    report = run(folder)
    assert not report.notes and run(folder, model=refuse_to_run(tiny_llama())).mask == report.mask


def test_what_does_not_belong_is_refused(tmp_path):
    folder = tmp_path / "kept"
    run(folder)
    with pytest.raises(InvalidValue, match=r"are of another model\. Give another folder"):
        run(folder, seed=1)
    with pytest.raises(InvalidValue, match="are of another calibration"):
        run(folder, batches=batches_for(tiny_llama(), seed=1))
    with pytest.raises(MissingStatistic, match="but Hessian is needed"):
        run(folder, start="sparsegpt")
    with pytest.raises(MissingStatistic, match="no statistics of 1 of the targets, among them lm_"):
        run(folder, targets=["lm_head", "*.q_proj"])
    with pytest.raises(InvalidValue, match="magnitude gathers no statistics"):
        run(folder, "magnitude")
    with pytest.raises(InvalidValue, match="snip gathers no statistics"):
        run(folder, "snip")


def test_folders_that_are_something_else(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is no folder of statistics"):
        run(tmp_path)
    kept = tmp_path / "kept"
    run(kept)
    (kept / "0001.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"0001\.safetensors cannot be read"):
        run(kept)
    (kept / "statistics.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"statistics\.json cannot be read"):
        run(kept)
    about = {"version": 2, "model": "", "calibration": "", "statistics": [], "stages": []}
    (kept / "statistics.json").write_text(json.dumps(about))
    with pytest.raises(InvalidValue, match="is of version 2"):
        run(kept)
