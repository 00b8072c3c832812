import copy
import json

import pytest
import torch
from tests.models import ARCHITECTURES, Blocks, batches_for, tiny_llama, tiny_mlp, tiny_opt

import sparsecraft
from sparsecraft.core.errors import InvalidValue, NoMatch, NonFinite, SparsityError, UnknownName
from sparsecraft.core.thresholds import exact_threshold
from sparsecraft.methods.activations.teal import TEAL
from sparsecraft.model import gate_calibration
from sparsecraft.model.calibration import stages
from sparsecraft.model.gate_calibration import KeptValues
from sparsecraft.model.gate_places import find_input_places
from sparsecraft.model.gating import gate, installed_gates
from sparsecraft.model.rotation import rotate

METHODS = {
    "teal": {},
    "teal counted": {"rule": "topk"},
    "wina": {"transform": False},
    "random_gate": {},
}


def logits(model, batch):
    with torch.no_grad():
        return model(**batch)[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_gated_and_given_back(name, method):
    model = ARCHITECTURES[name]()
    batches = batches_for(model)
    before, weights = logits(model, batches[0]), copy.deepcopy(model.state_dict())
    gated = gate(
        model, method.split()[0], sparsity=0.5, calibration=batches, prefill=1.0, **METHODS[method]
    )
    report = gated.report
    assert report.sparsity == pytest.approx(0.5, abs=0.04)
    assert report.whole_text == pytest.approx(report.sparsity)
    assert list(gated.gates) == [row.name for row in report.rows]
    assert not torch.equal(logits(model, batches[0]), before)
    gated.undo()
    assert torch.equal(logits(model, batches[0]), before)
    assert not installed_gates(model)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_greedy_shares_reach_what_is_asked(name):
    model = ARCHITECTURES[name]()
    batches = batches_for(model)
    gated = gate(
        model, "teal", sparsity=0.5, calibration=batches, allocation="greedy", step=0.25,
    )  # fmt: skip
    assert gated.report.sparsity == pytest.approx(gated.report.asked, abs=0.04)
    assert gated.report.asked == pytest.approx(0.5, abs=0.1)
    assert len(gated.report.searches) == 2


@pytest.mark.parametrize("name", ["llama", "qwen2", "mixtral"])
def test_wina_rotates_first_and_undo_takes_both_back(name):
    model = ARCHITECTURES[name]()
    batch = batches_for(model)[0]
    before, weights = logits(model, batch), copy.deepcopy(model.state_dict())
    gated = gate(model, "wina", sparsity=0.0)
    assert torch.allclose(logits(model, batch), before, atol=1e-4)
    normed = {name for name, each in gated.gates.items() if each.norms is not None}
    assert normed == {n for n in gated.gates if n.endswith(("k_proj", "gate_proj"))}
    assert any("rotated 2 blocks" in note for note in gated.report.notes)
    assert not any("shortcut" in name for name in gated.gates)
    gated.undo()
    assert torch.equal(logits(model, batch), before)
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_thresholds_are_quantiles_of_what_flows_in():
    model = tiny_llama()
    batches = batches_for(model)
    gated = gate(model, "teal", sparsity=0.6, calibration=batches, prefill=1.0)
    hidden = []
    handle = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(
        lambda _, args: hidden.append(args[0].detach().flatten(0, 1))
    )
    gated.undo()
    for batch in batches:
        logits(model, batch)
    handle.remove()
    again = gate(model, "teal", sparsity=0.6, calibration=batches, prefill=1.0)
    threshold = again.gates["model.layers.1.mlp.down_proj"].threshold
    assert threshold == pytest.approx(exact_threshold(torch.cat(hidden).abs(), 0.6), rel=1e-5)


def test_each_matrix_has_a_mask_of_its_own():
    model = tiny_llama()
    batches = batches_for(model)
    gate(model, "wina", transform=False, norms="all", sparsity=0.5)
    seen = {}
    for name in ("q_proj", "k_proj", "v_proj"):
        layer = model.model.layers[0].self_attn.get_submodule(name)
        layer.register_forward_pre_hook(lambda _, args, key=name: seen.update({key: args[0]}))
    logits(model, batches[0])
    assert not torch.equal(seen["q_proj"] != 0, seen["k_proj"] != 0)
    both = (seen["q_proj"] != 0) & (seen["k_proj"] != 0)
    assert torch.equal(seen["q_proj"][both], seen["k_proj"][both])


def test_layer_wise_calibration_sees_gated_inputs():
    batches = batches_for(tiny_llama())
    found = {}
    for layer_wise in (False, True):
        model = tiny_llama()
        gated = gate(model, "teal", sparsity=0.7, calibration=batches, layer_wise=layer_wise)
        found[layer_wise] = {name: g.threshold for name, g in gated.gates.items()}
    first = [name for name in found[True] if name.startswith("model.layers.0.")]
    later = [name for name in found[True] if name.startswith("model.layers.1.")]
    assert all(found[True][name] == found[False][name] for name in first)
    assert all(found[True][name] != found[False][name] for name in later)


def test_greedy_beats_uniform_in_block_error_at_equal_sparsity():
    model = tiny_llama()
    gated = gate(
        model, "teal", rule="topk", prefill=1.0, sparsity=0.5, calibration=batches_for(model),
        allocation="greedy", step=0.2,
    )  # fmt: skip
    assert list(gated.report.searches) == ["model.layers.0", "model.layers.1"]
    for name, rows in gated.report.searches.items():
        assert all(row.error <= row.uniform_error + 1e-9 for row in rows)
        assert rows[-1].effective >= 0.5
        asked = {r.name: r.asked for r in gated.report.rows if r.name.startswith(name)}
        nearest = min(rows, key=lambda row: abs(row.effective - 0.5))
        assert asked == nearest.shares
        assert len(set(asked.values())) > 1
    assert gated.report.asked == pytest.approx(0.5, abs=0.1)


def test_the_greedy_search_measures_the_real_block_error():
    model = tiny_llama()
    batches = batches_for(model, count=1)
    targets = ["*.layers.0.mlp.down_proj", "*.layers.0.mlp.up_proj"]
    gated = gate(
        model, "teal", rule="topk", prefill=1.0, sparsity=0.4, calibration=batches,
        allocation="greedy", step=0.4, targets=targets,
    )  # fmt: skip
    rows = gated.report.searches["model.layers.0"]
    sparse = _block_output(model, batches[0])
    dense = _block_output(gated.undo(), batches[0])
    if rows[-1].effective == pytest.approx(gated.report.asked):
        error = (dense - sparse)[:, -3:].norm(dim=1).mean()
        assert rows[-1].error == pytest.approx(float(error), rel=1e-4)
    else:
        pytest.fail(f"the last row was expected to be used: {rows}")


def test_a_search_runs_on_few_sequences_but_thresholds_see_all(monkeypatch):
    monkeypatch.setattr(gate_calibration, "SEARCH_TOKENS", 12)
    batches = batches_for(tiny_llama())
    options = {"sparsity": 0.4, "allocation": "greedy", "step": 0.5, "targets": "*.0.mlp.*"}
    model = tiny_llama()
    few = gate(model, "teal", calibration=batches, **options).report
    first = [{key: value[:1] for key, value in batches[0].items()}]
    alone = gate(tiny_llama(), "teal", rule="topk", calibration=first, **options).report
    every = gate(tiny_llama(), "teal", rule="topk", calibration=batches, **options).report
    assert alone.searches["model.layers.0"] == every.searches["model.layers.0"]
    assert few.calibration_tokens == 72


def _block_output(model, batch):
    seen = []
    handle = model.model.layers[0].register_forward_hook(
        lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    logits(model, batch)
    handle.remove()
    return seen[0]


def test_stages_tell_what_a_block_makes_of_its_inputs_now():
    model = tiny_llama()
    batches = batches_for(model)
    places = find_input_places(model, "*.q_proj")
    targets = [place.target(model) for place in places]
    for stage in stages(model, targets, (KeptValues,), batches):
        values = stage.values[stage.targets[0].name][KeptValues]
        assert values.shape == (2 * 3 * 12, 32)
        assert len(stage.outputs(1)) == 1
        if stage.name == "model.layers.0":
            assert torch.allclose(stage.outputs(2)[1], _block_output(model, batches[1]), atol=1e-6)


def test_a_network_without_blocks_is_gated_layer_by_layer():
    model = tiny_mlp()
    batches = [{"input": torch.randn(64, 12, generator=torch.Generator().manual_seed(0))}]
    gated = gate(model, "teal", sparsity=0.5, calibration=batches)
    assert list(gated.gates) == ["0", "2", "4"]
    assert gated.report.sparsity == pytest.approx(0.5, abs=0.06)
    gated.undo()
    with pytest.raises(InvalidValue, match=r"within repeated blocks, and 0 lies outside"):
        gate(model, "teal", calibration=batches, allocation="greedy")


def test_an_exact_count_needs_no_data_and_says_what_is_not_measured():
    model = Blocks()
    report = gate(model, "teal", rule="topk", sparsity=0.5).report
    assert report.sparsity is None
    assert report.asked == 0.5
    assert any("not measured: no calibration data" in note for note in report.notes)
    assert any("bring no speed" in note and "pack" in note for note in report.notes)


def test_few_tokens_are_remarked_upon():
    model = tiny_llama()
    batches = batches_for(model)
    notes = gate(model, "teal", calibration=batches).report.notes
    assert any("chosen on 72 tokens, fewer than 2048" in note for note in notes)


def test_a_context_manager_gives_the_model_back():
    model = tiny_llama()
    batch = batches_for(model)[0]
    before = logits(model, batch)
    with gate(model, "wina", sparsity=0.5) as gated:
        assert gated.model is model
        assert not torch.equal(logits(model, batch), before)
    assert torch.equal(logits(model, batch), before)


def test_what_was_skipped_and_done_is_plain_json():
    model = ARCHITECTURES["mixtral"]()
    gated = gate(model, "teal", calibration=batches_for(model), allocation="greedy", step=0.5)
    written = json.loads(json.dumps(gated.report.to_json()))
    assert written["method"]["method"] == "teal"
    assert written["places"][0]["asked"] == gated.report.rows[0].asked
    assert {"name", "reason"} == set(written["skipped"][0])
    assert any("fused experts" in each["reason"] for each in written["skipped"])
    assert written["searches"]["model.layers.0"][0]["shares"]


def test_training_mode_is_left_as_it_was():
    model = tiny_llama().train()
    gate(model, "teal", calibration=batches_for(model))
    assert all(module.training for module in model.modules())


def test_bfloat16_models_are_gated_in_their_own_dtype():
    model = tiny_llama().to(torch.bfloat16)
    batches = batches_for(model)
    gated = gate(model, "wina", sparsity=0.5, calibration=batches, rule="threshold", prefill=1.0)
    assert logits(model, batches[0]).dtype == torch.bfloat16
    assert gated.report.sparsity == pytest.approx(0.5, abs=0.05)
    gated.undo()


def _gated():
    model = tiny_llama()
    gate(model, "teal", rule="topk")
    return model


def _quantised():
    model = tiny_llama()
    model.config.quantization_config = {"quant_method": "none"}
    return model


def _infinite():
    model = tiny_llama()
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("inf")
    return model


@pytest.mark.parametrize(
    ("make", "method", "options", "error", "message"),
    [
        (_gated, "teal", {"rule": "topk"}, InvalidValue, "14 gates already .teal, sparsity 0.5"),
        (_quantised, "teal", {"rule": "topk"}, InvalidValue, "the model is quantised"),
        (_infinite, "teal", {"rule": "topk"}, NonFinite, "layers.1.mlp.up_proj.weight has NaN"),
        (tiny_llama, "teal", {}, InvalidValue, 'thresholds are chosen on data.*rule="topk"'),
        (tiny_llama, "cats", {}, InvalidValue, "thresholds are chosen on data"),
        (
            tiny_llama, "teal", {"rule": "topk", "allocation": "greedy"},
            InvalidValue, "greedy allocation are chosen on data",
        ),
        (tiny_llama, "magnitude", {}, InvalidValue, "a ModelWide|a Layerwise"),
        (tiny_llama, "wina", {"sparsity": 1.0}, InvalidValue, r"in \[0, 1\)"),
        (tiny_llama, "wina", {"sparsity": 0.98}, InvalidValue, "of 32 entries keeps none"),
        (tiny_llama, "wina", {"rule": "top"}, UnknownName, "Did you mean 'topk'"),
        (tiny_llama, "wina", {"norms": "some"}, UnknownName, "Known: all, orthogonal_only"),
        (tiny_llama, "wina", {"prefill": 2.0}, InvalidValue, r"prefill=2.0.*\[0, 1\]"),
        (tiny_llama, "wina", {"step": 0.0}, InvalidValue, "step=0.0"),
        (tiny_llama, "winaa", {}, UnknownName, "Did you mean 'wina'"),
        (tiny_llama, "wina", {"targets": "*.nothing"}, NoMatch, "match no layer"),
        (tiny_opt, "wina", {}, InvalidValue, "LayerNorm.*transform=False"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_and_the_model_stays(make, method, options, error, message):
    model = make()
    batch = batches_for(model)[0]
    before, gates = logits(model, batch), list(installed_gates(model))
    with pytest.raises(error, match=message):
        gate(model, method, **options)
    assert torch.equal(logits(model, batch).nan_to_num(), before.nan_to_num())
    assert list(installed_gates(model)) == gates


def test_a_rotated_model_is_gated_without_another_rotation():
    model = tiny_llama()
    rotation = rotate(model)
    with pytest.raises(SparsityError, match="rotated already"):
        gate(model, "wina")
    gated = gate(model, "wina", transform=False)
    normed = {name for name, each in gated.gates.items() if each.norms is not None}
    assert normed == set(rotation.orthogonal)


def test_a_method_may_be_given_built():
    model = tiny_llama()
    gated = sparsecraft.gate(model, TEAL(sparsity=0.25, rule="topk"))
    assert gated.gates["model.layers.0.mlp.down_proj"].keep == 48
    gated.undo()
    with pytest.raises(InvalidValue, match="is built already"):
        gate(model, TEAL(), sparsity=0.25)
