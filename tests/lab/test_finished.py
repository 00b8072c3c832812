"""Finished models on disk and back: plain torch, Hugging Face, whole and smaller."""

import json

import pytest
import torch

from sparsecraft import load
from sparsecraft.core import catalog
from sparsecraft.core.errors import CheckpointError, InvalidValue
from sparsecraft.core.mask import Mask
from sparsecraft.lab.compact_form import compact_form
from sparsecraft.lab.finished import load_finished, save_compact, save_finished
from sparsecraft.lab.tasks import load_task


def half(model, name):
    """Sets every other unit's incoming weights and bias to zero."""
    layer = model.get_submodule(name)
    with torch.no_grad():
        layer.weight[::2] = 0
        layer.bias[::2] = 0
    keep = torch.ones_like(layer.weight, dtype=torch.bool)
    keep[::2] = False
    return Mask({f"{name}.weight": keep})


STATIC = catalog.build("static", sparsity=0.5)
CASES = [("digits-mlp", "layers.1"), ("digits-vit", "vit.layers.0.mlp.fc1")]


@pytest.fixture(params=CASES, ids=[case[0] for case in CASES])
def case(request):
    name, layer = request.param
    task = load_task(name)
    model = task.build().eval()
    return task, model, half(model, layer)


def same(model, other, task):
    batch = task.example_input(4)
    with torch.no_grad():
        one, two = model(**batch), other(**batch)
    one, two = (each if isinstance(each, torch.Tensor) else each.logits for each in (one, two))
    return torch.allclose(one, two, atol=1e-5)


def test_a_model_and_its_smaller_form_come_back(tmp_path, case):
    task, model, mask = case
    save_finished(model, tmp_path / "model", task, mask=mask, form="plain", training={})
    again = load_finished(tmp_path / "model")
    assert not again.training
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    form = compact_form(model, STATIC, mask, task.example_input(3))
    save_compact(form, tmp_path / "compact", task)
    smaller = load_finished(tmp_path / "compact")
    assert sum(p.numel() for p in smaller.parameters()) == form.parameters
    assert form.parameters < sum(p.numel() for p in model.parameters())
    assert same(model, smaller, task)
    settings = json.loads((tmp_path / "compact" / "sparsecraft_config.json").read_text())
    assert settings["task"] == task.name


def test_load_says_how_a_plain_torch_model_is_loaded(tmp_path):
    task = load_task("digits-mlp")
    model = task.build()
    mask = half(model, "layers.1")
    save_finished(model, tmp_path / "model", task, mask=mask, form="plain", training={})
    with pytest.raises(CheckpointError, match=r"of the task digits-mlp, .*load_finished\('"):
        load(tmp_path / "model")


def test_damage_is_named(tmp_path):
    task = load_task("digits-mlp")
    model = task.build()
    mask = half(model, "layers.1")
    folder = save_finished(model, tmp_path / "model", task, mask=mask, form="plain", training={})
    settings = json.loads((folder / "sparsecraft_config.json").read_text())
    (folder / "sparsecraft_config.json").write_text(json.dumps({**settings, "task": "digits"}))
    with pytest.raises(ValueError, match="Unknown task 'digits'"):
        load_finished(folder)
    (folder / "sparsecraft_config.json").write_text(json.dumps(settings))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-9])
    with pytest.raises(CheckpointError, match="cut off"):
        load_finished(folder)
    with torch.no_grad():
        model.layers[1].weight[0, 0] = 1.0
    from safetensors.torch import save_model

    save_model(model, str(folder / "model.safetensors"))
    with pytest.raises(InvalidValue, match="not zero"):
        load_finished(folder)
    save_model(torch.nn.Linear(2, 2), str(folder / "model.safetensors"))
    with pytest.raises(CheckpointError, match="another model"):
        load_finished(folder)


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no finished model of a training"):
        load_finished(tmp_path)
    with pytest.raises(CheckpointError, match="there is no directory"):
        load_finished(tmp_path / "nothing")
