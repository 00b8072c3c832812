"""What `Packed.save` writes is the plain model without its zeros, and the record beside it."""

import json

import pytest
import torch
from tests.model.runtime.scripted import scripted
from tests.models import ARCHITECTURES, batches_for, tiny_llama, tiny_mlp

import sparsecraft
from sparsecraft.core.errors import CheckpointError
from sparsecraft.core.mask import Mask
from sparsecraft.kernels.linear import library
from sparsecraft.model.checkpoints import load_mask, save
from sparsecraft.model.gating import gate, installed_gates
from sparsecraft.model.pruning import prune
from sparsecraft.model.runtime import DecisionRecord, pack


def bits(model):
    views = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return {name: t.view(views[t.element_size()]) for name, t in model.state_dict().items()}


def assert_equal(first, second):
    one, two = bits(first), bits(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_load_gives_the_plain_model_back(name, tmp_path):
    model = ARCHITECTURES[name]()
    report = prune(model, "magnitude", sparsity=0.5)
    packed = pack(model, measure=scripted("bitmask int8"))
    packed.save(tmp_path / "out", mask=report.mask)
    again = sparsecraft.load(tmp_path / "out")
    assert type(again) is type(model)
    assert_equal(again, packed.undo())
    assert load_mask(tmp_path / "out") == report.mask


def test_gates_come_back_too(tmp_path):
    model = tiny_llama()
    gate(model, "wina", rule="topk", sparsity=0.5, norms="all", transform=False)
    batch = batches_for(model, 1)[0]
    with torch.no_grad():
        expected = model(**batch).logits
    pack(model, measure=scripted("gated int8@1")).save(tmp_path / "out")
    again = sparsecraft.load(tmp_path / "out")
    assert len(installed_gates(again)) == 14
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, expected)


def test_saving_leaves_the_model_packed(tmp_path):
    model = tiny_mlp()
    packed = pack(model, measure=scripted("dense int8"))
    before = dict(model.named_modules())
    packed.save(tmp_path / "out")
    assert dict(model.named_modules()) == before
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        packed.save(tmp_path / "out")
    assert dict(model.named_modules()) == before
    packed.save(tmp_path / "out", overwrite=True)


def test_half_of_bfloat16_takes_0_56_of_dense(tmp_path):
    model = tiny_llama(hidden_size=256, intermediate_size=512).bfloat16()
    report = prune(model, "magnitude", sparsity=0.5)
    pack(model, measure=scripted()).save(tmp_path / "packed", mask=report.mask)
    save(model, tmp_path / "plain")
    sizes = {
        name: sum(f.stat().st_size for f in (tmp_path / name).glob("*.safetensors"))
        for name in ("packed", "plain")
    }
    pruned = 2 * report.mask.numel
    rest = sizes["plain"] - pruned
    assert (sizes["packed"] - rest) / pruned == pytest.approx(0.5625, abs=0.005)


def test_masks_that_the_zeros_do_not_tell_are_written(tmp_path):
    model = tiny_llama()
    report = prune(model, "magnitude", sparsity=0.5)
    name = "model.layers.0.mlp.up_proj.weight"
    with torch.no_grad():
        kept = report.mask[name].nonzero()[0]
        model.get_parameter(name)[kept[0], kept[1]] = 0
    save(model, tmp_path / "out", mask=report.mask, form="packed")
    settings = json.loads((tmp_path / "out" / "sparsecraft_config.json").read_text())
    assert name not in settings["masks_in_weights"]
    assert len(settings["masks_in_weights"]) == 13
    assert load_mask(tmp_path / "out") == report.mask


def test_a_mask_of_a_tied_weight_is_told_too(tmp_path):
    model = tiny_llama(tie_word_embeddings=True)
    with torch.no_grad():
        model.lm_head.weight.mul_(torch.rand(64, 32, generator=_seeded()) < 0.3)
    mask = Mask({"model.embed_tokens.weight": model.lm_head.weight != 0})
    save(model, tmp_path / "out", mask=mask, form="packed")
    assert load_mask(tmp_path / "out") == mask
    again = sparsecraft.load(tmp_path / "out")
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert_equal(again, model)


def test_generation_settings_come_back(tmp_path):
    model = tiny_llama()
    model.generation_config.max_new_tokens = 7
    save(model, tmp_path / "out", form="packed")
    assert sparsecraft.load(tmp_path / "out").generation_config.max_new_tokens == 7


def test_a_record_spares_the_measurement(tmp_path):
    model = tiny_llama()
    prune(model, "magnitude", sparsity=0.5)
    first = pack(model, measure=scripted("bitmask int8@1", "dense bfloat16@32"))
    first.save(tmp_path / "out")
    assert DecisionRecord.load(tmp_path / "out") == first.record
    calls = []
    again = sparsecraft.load(tmp_path / "out")
    second = pack(again, record=tmp_path / "out", measure=scripted(calls=calls))
    assert not calls
    assert second.record.choices == first.record.choices
    assert "choices taken from a record" in second.record.notes
    with torch.no_grad():
        for batch in batches_for(model, 1):
            assert torch.equal(again(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize(
    ("options", "note"),
    [
        ({"tolerance": 0.01}, "measured again: the record's settings differ in tolerance"),
        ({"batch_sizes": (1,)}, "measured again: the record's settings differ in batch_sizes"),
    ],
)
def test_a_record_of_other_settings_is_not_taken(options, note):
    record = pack(tiny_llama(), measure=scripted()).record
    calls = []
    packed = pack(tiny_llama(), record=record, measure=scripted(calls=calls), **options)
    assert note in packed.record.notes
    assert calls


def test_a_record_of_another_machine_or_model_is_not_taken():
    record = pack(tiny_llama(), measure=scripted("dense int8")).record
    values = record.to_json()
    values["machine"] = {**values["machine"], "processor": "another", "threads": 99}
    other = DecisionRecord.from_json(values)
    packed = pack(tiny_llama(), record=other, measure=scripted())
    assert (
        "measured again: the record's machine differ in processor, threads" in packed.record.notes
    )
    sparse = tiny_llama()
    prune(sparse, "magnitude", sparsity=0.5)
    packed = pack(sparse, record=record, measure=scripted())
    assert any("the record does not fit model.layers.0" in note for note in packed.record.notes)


@pytest.fixture
def no_native_kernels(monkeypatch):
    monkeypatch.setenv("SPARSECRAFT_ISA", "none")
    library.forget()
    yield
    monkeypatch.undo()
    library.forget()


def test_without_a_compiler_packing_goes_on_and_says_so(no_native_kernels):
    model = tiny_mlp()
    prune(model, "magnitude", sparsity=0.5)
    x = torch.randn(3, 12, generator=_seeded())
    with torch.no_grad():
        expected = model(x)
        packed = pack(model, measure=scripted("bitmask float32"), dtypes=("float32",))
        torch.testing.assert_close(model(x), expected)
    assert packed.record.machine["native"] == "none: SPARSECRAFT_ISA=none"
    assert "native kernels: none: SPARSECRAFT_ISA=none" in packed.record.notes


def _seeded():
    return torch.Generator().manual_seed(0)
