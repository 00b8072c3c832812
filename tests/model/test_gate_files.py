import json

import pytest
import torch
from tests.models import ARCHITECTURES, batches_for, tiny_bert, tiny_llama

from sparsecraft.core.errors import CheckpointError
from sparsecraft.model.checkpoints import CONFIG, load, save
from sparsecraft.model.gate_files import GATES
from sparsecraft.model.gate_hooks import installed
from sparsecraft.model.gating import gate

CASES = {
    "teal": {},
    "teal greedy": {"allocation": "greedy", "step": 0.3},
    "wina": {"sparsity": 0.65},
    "wina threshold": {"rule": "threshold", "norms": "all"},
    "cats": {},
    "random_gate": {"seed": 5},
}


def same_gates(one, two) -> bool:
    first, second = installed(one), installed(two)
    return list(first) == list(second) and all(
        a.place == b.place and a.asked == b.asked and _same(a.gate, b.gate)
        for a, b in zip(first.values(), second.values(), strict=True)
    )


def _same(one, two) -> bool:
    norms = one.norms is two.norms is None or torch.equal(one.norms, two.norms)
    rest = [{k: v for k, v in vars(gate).items() if k != "norms"} for gate in (one, two)]
    return norms and type(one) is type(two) and rest[0] == rest[1]


@pytest.mark.parametrize("case", CASES)
def test_loading_calibrates_nothing_and_gives_the_same_bits(case, tmp_path):
    model = tiny_llama()
    batches = batches_for(model)
    gated = gate(model, case.split()[0], calibration=batches, **CASES[case])
    gated.save(tmp_path / "gated")
    loaded = load(tmp_path / "gated")
    assert same_gates(model, loaded)
    with torch.no_grad():
        assert torch.equal(loaded(**batches[0]).logits, model(**batches[0]).logits)
    start = torch.tensor([[1, 7, 9]])
    written, again = (m.generate(start, max_new_tokens=6, do_sample=False) for m in (model, loaded))
    assert torch.equal(written, again)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_comes_back(name, tmp_path):
    model = ARCHITECTURES[name]()
    batches = batches_for(model)
    gate(model, "wina", transform=False, rule="threshold", calibration=batches)
    save(model, tmp_path / "gated", form="augmented")
    loaded = load(tmp_path / "gated")
    assert same_gates(model, loaded)
    with torch.no_grad():
        assert torch.equal(loaded(**batches[0])[0], model(**batches[0])[0])


def test_the_settings_say_where_the_gates_come_from(tmp_path):
    model = tiny_llama()
    gate(model, "teal", calibration=batches_for(model), seed=3).save(tmp_path / "gated")
    settings = json.loads((tmp_path / "gated" / CONFIG).read_text())
    gates = settings["gates"]
    assert settings["form"] == "augmented"
    assert gates["method"]["method"] == "teal"
    assert gates["seed"] == 3
    assert gates["calibration"]["tokens"] == 72
    assert len(gates["calibration"]["fingerprint"]) == 32
    assert set(gates["versions"]) == {"sparsecraft", "torch"}
    assert gates["places"]["model.layers.0.mlp.down_proj"]["threshold"] > 0
    assert settings["gating"]["sparsity"] == pytest.approx(0.5, abs=0.05)
    assert "sparsecraft" not in (tmp_path / "gated" / "config.json").read_text()


def test_bfloat16_comes_back_in_bfloat16(tmp_path):
    model = tiny_llama().to(torch.bfloat16)
    batches = batches_for(model)
    gate(model, "wina", calibration=batches, rule="threshold").save(tmp_path / "gated")
    loaded = load(tmp_path / "gated", dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(loaded(**batches[0]).logits, model(**batches[0]).logits)


def test_a_loaded_model_can_be_saved_again(tmp_path):
    model = tiny_bert()
    gate(model, "teal", rule="topk").save(tmp_path / "one")
    save(load(tmp_path / "one"), tmp_path / "two", form="augmented")
    assert same_gates(model, load(tmp_path / "two"))


def test_a_plain_directory_cannot_hold_gates(tmp_path):
    model = tiny_llama()
    gate(model, "teal", rule="topk")
    with pytest.raises(CheckpointError, match=r'would be lost.*form="augmented".*undo'):
        save(model, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


def damaged(folder):
    (folder / GATES).write_bytes((folder / GATES).read_bytes()[:-5])


def removed(folder):
    (folder / GATES).unlink()


def without_norms(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(str(folder / GATES))
    tensors.pop(next(iter(tensors)))
    save_file(tensors, str(folder / GATES))


def renamed(folder):
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace('"module": "model.layers.0', '"module": "model.l'))


def unknown(folder):
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace('"kind": "magnitude"', '"kind": "clairvoyant"'))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damaged, "damaged|cut off"),
        (removed, "gates.safetensors is missing"),
        (without_norms, "lacks .*norms"),
        (renamed, "does not have"),
        (unknown, "'clairvoyant' are not known"),
    ],
)
def test_a_spoilt_directory_is_refused(tmp_path, spoil, message):
    gate(tiny_llama(), "wina", transform=False).save(tmp_path / "gated")
    spoil(tmp_path / "gated")
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path / "gated")
