import pytest
import torch
from tests.models import ARCHITECTURES, Blocks, tiny_cnn, tiny_gpt2, tiny_llama, tiny_mixtral
from torch import nn

from sparsecraft.core.errors import NoMatch
from sparsecraft.model.gate_places import find_activation_places, find_input_places

# Which inputs of a block are gated, by their authors' names; each module has one input.
INPUTS = {
    "gpt2": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "opt": [*(f"self_attn.{x}_proj" for x in ("k", "v", "q", "out")), "fc1", "fc2"],
    "gpt-neox": [
        "attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h",
    ],
    "bert": [
        *(f"attention.self.{x}" for x in ("query", "key", "value")), "attention.output.dense",
        "intermediate.dense", "output.dense",
    ],
    "mixtral": [f"self_attn.{x}_proj" for x in "qkvo"],
    "vit": [*(f"attention.{x}_proj" for x in "qkvo"), "mlp.fc1", "mlp.fc2"],
}  # fmt: skip
_LLAMA = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
INPUTS |= dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _LLAMA)
ORTHOGONAL = {
    "gpt2": ["attn.c_attn"],
    "opt": ["self_attn.k_proj"],
    "gpt-neox": ["attention.query_key_value"],
    "bert": ["attention.self.key"],
    "mixtral": ["self_attn.k_proj"],
    "vit": ["attention.k_proj"],
}
_COLUMNS = ["self_attn.k_proj", "mlp.gate_proj"]
ORTHOGONAL |= dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _COLUMNS)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_matrix_of_a_block_has_a_place(name):
    model = ARCHITECTURES[name]()
    places = find_input_places(model)
    blocks = list(dict.fromkeys(place.block for place in places))
    assert len(blocks) == 2
    for block in blocks:
        mine = [place for place in places if place.block == block]
        assert [p.name.removeprefix(f"{block}.") for p in mine] == INPUTS[name]
        columns = [p.name.removeprefix(f"{block}.") for p in mine if p.orthogonal]
        assert columns == ORTHOGONAL[name]
    for place in places:
        weight = place.weight(model)
        assert weight.shape[1] == place.features
        assert weight.numel() == place.numel
        assert place.parameters == (f"{place.module}.weight",)


def test_transposed_weights_are_shown_as_outputs_by_inputs():
    model = tiny_gpt2()
    place = find_input_places(model, "*.mlp.c_fc")[0]
    stored = model.get_parameter(f"{place.module}.weight")
    assert torch.equal(place.weight(model), stored.T)
    assert place.features == 32


def test_the_gate_matrix_is_known_by_what_it_feeds_not_by_its_name():
    model = tiny_llama()
    mlp = model.model.layers[0].mlp
    renamed = type(mlp)(model.config)
    other = nn.Module.__new__(_Renamed)
    nn.Module.__init__(other)
    other.second_thing, other.first_thing = renamed.up_proj, renamed.gate_proj
    other.narrow, other.act = renamed.down_proj, renamed.act_fn
    model.model.layers[0].mlp = other
    places = find_input_places(model, "*.0.mlp.*")
    assert [p.name.rpartition(".")[2] for p in places if p.orthogonal] == ["first_thing"]


class _Renamed(nn.Module):
    def forward(self, x):
        return self.narrow(self.act(self.first_thing(x)) * self.second_thing(x))


def test_fused_gate_and_up_count_as_the_gate():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up, self.down = nn.Linear(16, 48), nn.Linear(24, 16)
            self.act = nn.SiLU()

        def forward(self, x):
            gate, up = self.gate_up(x).chunk(2, -1)
            return self.down(self.act(gate) * up)

    model = nn.Sequential()
    model.blocks = nn.ModuleList([Fused(), Fused()])
    places = find_input_places(model)
    assert [p.name for p in places if p.orthogonal] == ["blocks.0.gate_up", "blocks.1.gate_up"]
    assert find_activation_places(model, gated=True)[0].name == "blocks.0.act"


def test_experts_are_skipped_with_the_reason():
    skipped = dict(find_input_places(tiny_mixtral()).skipped)
    assert "fused experts multiply inside one module" in skipped["model.layers.0.mlp.experts"]


def test_what_cannot_be_gated_is_named():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(8, 2), nn.Linear(8, 2)

    places = find_input_places(Attention())
    assert [place.name for place in places] == ["head"]
    skipped = dict(places.skipped)
    assert "MultiheadAttention multiplies without" in skipped["attention"]
    assert "MultiheadAttention multiplies without" in skipped["attention.out_proj"]
    convolutions = dict(find_input_places(tiny_cnn()).skipped)
    assert "Conv2d does not multiply tokens" in convolutions["0"]


def test_nothing_to_gate_is_an_error():
    with pytest.raises(NoMatch, match=r"nothing of this model.*Conv2d"):
        find_input_places(tiny_cnn(), "Conv2d")
    with pytest.raises(NoMatch, match="match no layer"):
        find_input_places(tiny_llama(), "*.nothing")


def test_a_part_of_a_fused_input_cannot_be_gated_alone():
    with pytest.raises(NoMatch, match="its parts have one input"):
        find_input_places(tiny_gpt2(), "transformer.h.0.attn.c_attn[[]q[]]")


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2", "qwen3"])
def test_gated_mlps_have_their_activation_as_a_place(name):
    places = find_activation_places(ARCHITECTURES[name](), gated=True)
    assert [p.name for p in places] == [f"model.layers.{i}.mlp.act_fn" for i in range(2)]
    assert all((p.at, p.features) == ("output", 64) for p in places)
    assert all(p.numel == 2 * 32 * 64 for p in places)  # rows of up, columns of down
    assert places[0].parameters == (
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
    )


def test_experts_share_one_activation_that_counts_all_of_them():
    model = tiny_mixtral()
    places = find_activation_places(model, gated=True)
    assert [p.name for p in places] == [f"model.layers.{i}.mlp.experts.act_fn" for i in range(2)]
    assert all(p.routed and p.numel == 4 * 2 * 32 * 64 for p in places)
    assert all(model.get_parameter(name) is not None for name in places[0].parameters)


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt-neox", "bert", "vit"])
def test_mlps_without_a_gate_are_refused_or_taken_as_asked(name):
    model = ARCHITECTURES[name]()
    with pytest.raises(NoMatch, match="has no gate branch"):
        find_activation_places(model, gated=True)
    places = find_activation_places(model, gated=False)
    assert len(places) == 2
    assert all((p.features, p.numel) == (_hidden(model), _hidden(model) * 32) for p in places)


def _hidden(model: nn.Module) -> int:
    return 128 if type(model).__name__ == "GPT2LMHeadModel" else 64


def test_a_network_without_sequences_has_places_too():
    assert [p.name for p in find_activation_places(Blocks(), gated=False)] == [
        "blocks.0.1",
        "blocks.1.1",
    ]
