import copy

import torch
from tests.models import batches_for, tiny_llama, tiny_opt
from torch import nn

import sparsecraft
from sparsecraft.core.gating import ActivationGate
from sparsecraft.model.gate_hooks import (
    GateHook,
    Origin,
    OutputGateHook,
    SequenceShape,
    install,
    installed,
    installed_gates,
    remove,
)
from sparsecraft.model.gate_places import Place

ORIGIN = Origin({"method": "teal"})


def place(name: str, at: str = "input") -> Place:
    return Place(name, name, at, 4, 8, (f"{name}.weight",))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


def test_inputs_and_outputs_are_gated():
    model, x = network(), torch.tensor([[3.0, -1.0, 0.5, 2.0]])
    first, second = ActivationGate(keep=1), ActivationGate(keep=2)
    gates = {place("0"): first, place("1", "output"): second}
    install(model, gates, {"0": 0.75, "1": 0.5}, ORIGIN)
    hidden = model[0].weight @ torch.tensor([3.0, 0.0, 0.0, 0.0]) + model[0].bias
    hidden = second.apply(hidden.relu()[None])
    by_hand = hidden @ model[2].weight.T + model[2].bias
    assert torch.allclose(model(x), by_hand)
    assert [type(hook) for hook in installed(model).values()] == [GateHook, OutputGateHook]
    assert installed_gates(model) == {"0": first}
    assert installed(model)["1"].asked == 0.5


def test_removing_leaves_nothing_of_ours_and_all_of_others():
    model = network()
    seen = []
    model[0].register_forward_pre_hook(lambda *_: seen.append(1))
    before = model(torch.ones(1, 4))
    install(model, {place("0"): ActivationGate(keep=1)}, {"0": 0.75}, ORIGIN)
    remove(model)
    assert not installed(model)
    assert torch.equal(model(torch.ones(1, 4)), before)
    assert len(seen) == 2


def test_a_copy_has_gates_of_its_own():
    model = network()
    install(model, {place("0"): ActivationGate(keep=1)}, {"0": 0.75}, ORIGIN)
    twin = copy.deepcopy(model)
    remove(model)
    assert list(installed_gates(twin)) == ["0"]
    assert not installed_gates(model)
    assert installed_gates(twin)["0"].keep == 1


def test_keys_of_the_state_dict_stay():
    model = tiny_llama()
    before = list(model.state_dict())
    sparsecraft.gate(model, "wina", transform=False, norms="all")
    assert list(model.state_dict()) == before


def test_flattened_tokens_are_seen_as_their_sequences():
    shape = SequenceShape()
    shape(nn.Identity(), (torch.zeros(2, 5, 3),), {})
    assert shape.sequences(torch.zeros(10, 7)).shape == (2, 5, 7)
    assert shape.sequences(torch.zeros(9, 7)).shape == (9, 7)
    shape(nn.Identity(), (), {"hidden_states": torch.zeros(1, 4, 3)})
    assert shape.sequences(torch.zeros(4, 7)).shape == (1, 4, 7)


def test_opt_spares_the_first_tokens_though_it_flattens_them():
    model = tiny_opt()
    batch = batches_for(model, count=1, rows=2)[0]
    gated = sparsecraft.gate(model, "teal", rule="topk", prefill=0.5, targets="*.fc1")
    seen = []
    layer = model.model.decoder.layers[0].fc1
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(**batch)
    zeros = (seen[0].view(2, 12, 32) == 0).sum(-1)
    assert (zeros[:, :6] == 0).all()
    assert (zeros[:, 6:] == 16).all()
    gated.undo()
    assert not any(isinstance(h, SequenceShape) for m in model.modules()
                   for h in m._forward_pre_hooks.values())  # fmt: skip


def test_a_compiled_model_computes_the_same_in_one_graph():
    model = tiny_llama()
    batch = batches_for(model, count=1)[0]
    sparsecraft.gate(model, "wina", transform=False)
    with torch.no_grad():
        expected = model(**batch).logits
        found = torch.compile(model, backend="aot_eager", fullgraph=True)(**batch).logits
    assert torch.allclose(found, expected, atol=1e-5)


def test_generation_keeps_its_cache_and_gates_every_new_token():
    model = tiny_llama()
    sparsecraft.gate(model, "teal", rule="topk", sparsity=0.5)
    counts = []
    layer = model.model.layers[0].mlp.down_proj
    layer.register_forward_pre_hook(lambda _, args: counts.append((args[0] != 0).sum(-1)))
    out = model.generate(torch.tensor([[1, 5, 9, 4]]), max_new_tokens=5, do_sample=False)
    assert out.shape == (1, 9)
    assert counts[0].tolist() == [[64, 64, 32, 32]]
    assert [count.tolist() for count in counts[1:]] == [[[32]]] * 4
