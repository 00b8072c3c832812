"""`pack` takes what was measured fastest within the tolerance, says why, and can take it back."""

import copy

import pytest
import torch
from tests.model.runtime.scripted import scripted
from tests.models import ARCHITECTURES, batches_for, tiny_llama, tiny_mlp
from torch import nn

import sparsecraft
from sparsecraft.core.errors import InvalidValue, NoMatch, UnknownName
from sparsecraft.model.gating import gate, installed_gates
from sparsecraft.model.pruning import prune
from sparsecraft.model.runtime import pack
from sparsecraft.model.runtime.packed_linear import PackedLinear

IDS = torch.tensor([[5, 9, 11, 3, 7]])


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


def modules(model):
    return dict(model.named_modules())


def test_it_is_public():
    assert sparsecraft.pack is pack


def test_the_fastest_is_taken_for_each_number_of_rows():
    model = tiny_llama()
    prune(model, "magnitude", sparsity=0.5)
    packed = pack(model, measure=scripted("bitmask bfloat16@1", "dense int8@32"))
    choice = packed.record.of("model.layers.0.self_attn.q_proj")
    assert [(c.rows, c.chosen) for c in choice] == [(1, "bitmask bfloat16"), (32, "dense int8")]
    assert choice[0].why == ("bitmask bfloat16: 2.00x torch float32, 2.00x the best dense bfloat16")
    assert choice[1].why == "dense int8: 2.00x torch float32"
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.plan(1).weight.name == "bitmask"
    assert layer.plan(5).weight.name == "bitmask"  # sqrt(1 * 32) = 5.7
    assert layer.plan(6).weight.name == layer.plan(999).weight.name == "dense"
    head = packed.record.of("lm_head")
    assert [c.chosen for c in head] == ["torch float32", "dense int8"]
    assert head[0]["bitmask bfloat16"].note == "0% zeros are too few"


def test_dense_stays_the_module_it_was_where_nothing_is_faster():
    model = tiny_llama()
    before = modules(model)
    packed = pack(model, measure=scripted())
    assert modules(model) == before
    assert packed.bytes == packed.record.dense_bytes
    for choice in packed.record.choices:
        assert choice.chosen == "torch float32"
        assert choice.why.startswith("stays torch float32: none is faster by 3%")
    assert "no speed-up here" in packed.record.summary()


def test_real_times_are_obeyed():
    packed = pack(tiny_mlp(), seconds=0)
    assert len(packed.record.choices) == 6
    for choice in packed.record.choices:
        times = {c.name: c.microseconds for c in choice.candidates if c.rounds}
        assert min(times.values()) > 0
        assert all(c.rounds >= 5 for c in choice.candidates if c.name in times)
        before = times[choice.baseline]
        assert choice.chosen == choice.baseline or times[choice.chosen] <= before / 1.03
        assert all(c.note for c in choice.candidates if c.name not in times)


def test_a_gain_within_the_margin_is_no_gain():
    packed = pack(tiny_mlp(), measure=scripted("dense float32", factor=1.02))
    assert {choice.chosen for choice in packed.record.choices} == {"torch float32"}


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_computes_nearly_the_same(name):
    model = ARCHITECTURES[name]()
    prune(model, "magnitude", sparsity=0.5)
    batch = batches_for(model, 1)[0]
    with torch.no_grad():
        before = model(**batch)[0]
        packed = pack(model, measure=scripted("bitmask float32"), dtypes=("float32",))
        after = model(**batch)[0]
    assert {choice.chosen for choice in packed.record.choices} >= {"bitmask float32"}
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_what_is_not_packed_is_named():
    packed = pack(ARCHITECTURES["mixtral"](), measure=scripted("dense int8"))
    left = packed.record.left_alone
    assert left["model.layers.0.mlp.experts"].startswith("fused experts")
    assert left["model.embed_tokens"].startswith("an embedding")
    assert "model.embed_tokens: left alone, an embedding" in packed.record.table()


def test_the_tolerance_is_held_and_the_next_best_taken():
    packed = pack(
        tiny_mlp(), tolerance=1e-3, measure=scripted("dense int8", "dense float32"), batch_sizes=[1]
    )
    for choice in packed.record.choices:
        assert choice.chosen == "dense float32"
        assert choice["dense int8"].error > 1e-3
        assert "exceeds the tolerance 0.001" in choice["dense int8"].note
        assert choice.error <= 1e-3


def test_dense_stays_where_all_that_is_faster_exceeds_the_tolerance():
    packed = pack(tiny_mlp(), tolerance=0.0, measure=scripted("dense int8"), batch_sizes=[1])
    why = packed.record.choices[0].why
    assert why.startswith("stays torch float32: what is faster exceeds the tolerance: dense int8")


def test_errors_are_those_of_each_layer_and_times_are_shared():
    calls = []
    model = tiny_llama()
    packed = pack(model, measure=scripted("dense int8", calls=calls), batch_sizes=(1,))
    assert len(calls) == len({choice.timed_on for choice in packed.record.choices}) == 4
    errors = {c.error for c in packed.record.choices if c.timed_on.endswith("0.mlp.gate_proj")}
    assert len(errors) == 5  # gate and up of two blocks, and the head


def test_undo_restores_the_very_modules_and_the_numbers():
    model = tiny_llama()
    gate(model, "teal", rule="topk", sparsity=0.5)
    before, expected = modules(model), logits(model)
    packed = pack(model, measure=scripted("gated int8@1", "dense bfloat16"))
    assert any(isinstance(module, PackedLinear) for module in model.modules())
    assert packed.undo() is model
    assert modules(model) == before
    assert torch.equal(logits(model), expected)


def test_as_a_context_it_undoes_itself():
    model = tiny_mlp()
    before = modules(model)
    with pack(model, measure=scripted("dense int8")) as packed:
        assert isinstance(packed.model[0], PackedLinear)
    assert modules(model) == before


def test_a_gated_layer_reads_only_what_its_gate_keeps():
    model = tiny_llama()
    gate(model, "teal", rule="topk", sparsity=0.5)
    expected = logits(model, IDS[:, :1])
    packed = pack(model, measure=scripted("gated float32@1"), dtypes=("float32",))
    choice = packed.record.of("model.layers.0.mlp.up_proj")
    assert choice[0].chosen == "gated float32"
    assert choice[0].kept == pytest.approx(0.5)
    assert choice[0].error < 1e-5
    torch.testing.assert_close(logits(model, IDS[:, :1]), expected, rtol=1e-4, atol=1e-5)


def test_more_rows_than_one_are_computed_whole_and_the_record_says_so():
    model = tiny_llama()
    whole = logits(model)
    gate(model, "teal", rule="topk", sparsity=0.5)
    packed = pack(model, measure=scripted("gated float32@1"), dtypes=("float32",))
    choice = packed.record.of("model.layers.0.mlp.up_proj")[1]
    assert choice.why.endswith("its gate is not used at 32 rows")
    assert choice["gated float32"].note == "a gate serves one token; 32 rows are computed whole"
    assert not installed_gates(model)
    torch.testing.assert_close(logits(model), whole, rtol=1e-4, atol=1e-5)


def test_a_gate_may_be_left_out_where_dense_is_faster():
    model = tiny_llama()
    whole = logits(model, IDS[:, :1])
    gate(model, "teal", rule="topk", sparsity=0.5)
    packed = pack(model, measure=scripted(), dtypes=("float32",), batch_sizes=(1,))
    choice = packed.record.of("model.layers.0.mlp.up_proj")[0]
    assert choice.chosen == "torch float32"
    assert choice.why.endswith("its gate is not used")
    assert torch.equal(logits(model, IDS[:, :1]), whole)


def test_a_random_gate_stays_masked():
    model = tiny_llama()
    gate(model, "random_gate", sparsity=0.5)
    packed = pack(model, measure=scripted("dense int8"))
    reason = packed.record.left_alone["model.layers.0.mlp.up_proj"]
    assert reason == "its gate is a RandomGate, which no kernel computes; it stays masked"
    assert len(installed_gates(model)) == 14


def test_zeros_after_a_relu_are_passed_over():
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16)).eval()
    example = {"input": torch.randn(40, 16, generator=torch.Generator().manual_seed(0))}
    packed = pack(
        model,
        example=example,
        measure=scripted("gated float32"),
        batch_sizes=(1,),
        dtypes=["float32"],
    )
    choice = packed.record.of("2")[0]
    assert choice.chosen == "gated float32"
    assert 0.3 < choice.kept < 0.7
    assert packed.record.of("0")[0]["gated float32"].note == "no gate, and no zeros in its input"


def test_small_memory_stores_one_form():
    model = tiny_llama()
    gate(model, "teal", rule="topk", sparsity=0.5)
    script = scripted("gated int8@1", "gated float32@1", "dense bfloat16@32", "by_input int8@32")
    fast = pack(copy.deepcopy(model), measure=script, targets="*.mlp.*")
    small = pack(model, measure=script, targets="*.mlp.*", memory="small")
    assert {c.chosen for c in fast.record.choices} == {"gated int8", "dense bfloat16"}
    assert {c.chosen for c in small.record.choices} == {"gated int8", "by_input int8"}
    assert all("stored once for all rows" in c.why for c in small.record.choices)
    layer = model.model.layers[0].mlp.up_proj
    assert len(layer.stores()) == 1
    assert small.bytes < fast.bytes
    assert small.bytes == sum(store.nbytes for m in model.modules() for store in _stores(m))


def test_small_memory_never_takes_what_is_slower_somewhere():
    def measure(contenders, inputs, **options):
        times = scripted("dense int8@1")(contenders, inputs, **options)
        if inputs[0].shape[0] == 32:
            return scripted("torch float32")(contenders, inputs, **options)
        return times

    packed = pack(tiny_mlp(), measure=measure, memory="small")
    assert {c.chosen for c in packed.record.choices} == {"torch float32"}


def test_one_weight_for_several_plans_is_held_and_counted_once():
    model = tiny_mlp()
    packed = pack(model, measure=scripted("dense int8"))
    stores = model[0].stores()
    assert len(stores) == 1
    assert packed.bytes == sum(16 + n * m + 4 * n - 16 for n, m in ((16, 12), (8, 16), (4, 8)))


def test_a_dense_weight_of_its_own_type_is_not_copied():
    model = tiny_mlp()
    weight = model[0].weight
    pack(model, measure=scripted("dense float32@1"))
    held = [t.data_ptr() for store in model[0].stores() for t in store.tensors().values()]
    assert set(held) == {weight.data_ptr()}


def test_the_way_back_can_be_given_away():
    model = tiny_mlp()
    packed = pack(model, measure=scripted("dense int8"), keep_original=False)
    for call in (packed.undo, lambda: packed.save("somewhere")):
        with pytest.raises(
            InvalidValue, match="keep_original=False gave away; load the model anew"
        ):
            call()


def test_copies_and_state_dicts():
    model = tiny_llama()
    keys, expected = list(model.state_dict()), logits(model)
    packed = pack(model, measure=scripted("dense int8"), dtypes=("int8",))
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), logits(model))
    state = model.state_dict()
    assert list(state) == keys
    assert state["lm_head.weight"].dtype == torch.float32
    fresh = tiny_llama(seed=1)
    fresh.load_state_dict(state)
    torch.testing.assert_close(logits(fresh), logits(model), rtol=1e-3, atol=1e-4)
    with pytest.raises(InvalidValue, match=r"q_proj is packed and takes no new weights: undo\(\)"):
        model.load_state_dict(fresh.state_dict())
    packed.undo()
    assert torch.equal(logits(model), expected)


def test_gradients_of_the_input_pass_and_weights_have_none():
    model = tiny_mlp()
    x = torch.randn(1, 12, generator=torch.Generator().manual_seed(0))
    expected = torch.autograd.functional.jacobian(model, x)
    pack(model, measure=scripted("dense float32"), dtypes=("float32",))
    torch.testing.assert_close(torch.autograd.functional.jacobian(model, x), expected)
    assert [name for name, _ in model.named_parameters()] == ["0.bias", "2.bias", "4.bias"]


def test_generation_with_a_cache_agrees():
    model = tiny_llama()
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(IDS, **options)
    pack(model, measure=scripted("by_input float32", "dense float32"), dtypes=("float32",))
    assert torch.equal(model.generate(IDS, **options), expected)


def test_bfloat16_activations():
    model = tiny_llama().bfloat16()
    expected = logits(model).float()
    packed = pack(model, measure=scripted("dense int8@1", "dense bfloat16@32"))
    choice = packed.record.of("lm_head")
    assert choice[0]["dense float32"].note == "wider than the layer's bfloat16"
    found = logits(model)
    assert found.dtype == torch.bfloat16
    assert float((found.float() - expected).norm() / expected.norm()) < 0.02


@pytest.mark.slow
def test_torch_compile_does_not_break():
    model = tiny_mlp()
    prune(model, "magnitude", sparsity=0.5)
    pack(model, measure=scripted("bitmask float32@1", "dense int8@32"))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for rows in (1, 7, 40):
        x = torch.randn(rows, 12, generator=torch.Generator().manual_seed(rows))
        with torch.no_grad():
            torch.testing.assert_close(compiled(x), model(x))


def test_dtype_changes_pass_by_and_devices_are_refused():
    model = tiny_mlp()
    pack(model, measure=scripted("dense float32"), dtypes=("float32",))
    x = torch.ones(1, 12)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(model.bfloat16()(x), expected)
    with pytest.raises(InvalidValue, match=r"stays on cpu, where it was measured: undo\(\)"):
        model.to("meta")


def test_shared_modules_are_replaced_everywhere():
    shared = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": shared, "b": shared})
    packed = pack(model, measure=scripted("dense int8"))
    assert model["a"] is model["b"]
    assert isinstance(model["a"], PackedLinear)
    packed.undo()
    assert model["a"] is model["b"] is shared


def test_threads_stand_in_the_record():
    packed = pack(tiny_mlp(), measure=scripted())
    assert packed.record.machine["threads"] == torch.get_num_threads()
    assert packed.record.machine["native"]


def test_a_number_of_seconds_is_shared_and_progress_told():
    told, given = [], []

    def measure(contenders, inputs, *, seconds, **options):
        given.append(seconds)
        return scripted()(contenders, inputs, seconds=seconds, **options)

    pack(tiny_mlp(), measure=measure, seconds=12, progress=lambda *step: told.append(step))
    assert given == [2.0] * 6
    assert told == [("0", 0, 3), ("2", 1, 3), ("4", 2, 3), ("packed", 3, 3)]


def test_targets_choose():
    packed = pack(tiny_llama(), targets="*.mlp.*", measure=scripted("dense int8"))
    assert {choice.layer.split(".")[3] for choice in packed.record.choices} == {"mlp"}
    assert packed.record.left_alone["lm_head"] == "not among the targets"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch_sizes": ()}, InvalidValue, "give numbers from 1 up"),
        ({"batch_sizes": (0, 1)}, InvalidValue, "give numbers from 1 up"),
        ({"tolerance": 1.5}, InvalidValue, r"give a share in \[0, 1\)"),
        ({"memory": "none"}, InvalidValue, "choose 'fast' or 'small'"),
        ({"formats": ("bitmap",)}, UnknownName, "Did you mean 'bitmask'"),
        ({"formats": "csr"}, InvalidValue, r"give a list, such as \['csr'\]"),
        ({"dtypes": ("int9",)}, UnknownName, "Did you mean 'int8'"),
        ({"dtypes": ()}, InvalidValue, "dtypes is empty"),
        ({"example": {"wrong": 1}}, InvalidValue, "the model does not take the example"),
    ],
)
def test_wrong_settings_are_refused(options, error, message):
    model = tiny_mlp()
    before = modules(model)
    with pytest.raises(error, match=message):
        pack(model, **options)
    assert modules(model) == before


def test_a_packed_model_is_not_packed_again():
    model = tiny_mlp()
    pack(model, measure=scripted("dense int8"))
    with pytest.raises(InvalidValue, match=r"packed already; undo\(\) first"):
        pack(model)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(NoMatch, match="no linear layer to pack"):
        pack(nn.Sequential(nn.Conv2d(3, 4, 3)))


def _stores(module):
    return module.stores() if isinstance(module, PackedLinear) else []
