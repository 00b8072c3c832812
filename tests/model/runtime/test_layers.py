"""Which modules are packed, and the reason for each of the others."""

import pytest
import torch
from tests.models import tiny_gpt2, tiny_llama, tiny_mlp
from torch import nn

from sparsecraft.core.errors import NoMatch
from sparsecraft.model.runtime.layers import find_layers


def test_all_linear_layers_in_model_order_the_head_too():
    layers, left = find_layers(tiny_llama())
    assert len(layers) == 15
    assert layers[0].name == "model.layers.0.self_attn.q_proj"
    assert layers[-1].name == "lm_head"
    assert left == {"model.embed_tokens": "an embedding: rows are looked up, not multiplied"}


def test_a_conv1d_is_shown_as_outputs_by_inputs():
    model = tiny_gpt2()
    layers, _ = find_layers(model, "*.c_attn")
    assert layers[0].shape == (96, 32)
    module = model.transformer.h[0].attn.c_attn
    assert torch.equal(layers[0].weight, module.weight.t())
    assert layers[0].bias is module.bias


def test_density_and_type():
    model = tiny_mlp()
    with torch.no_grad():
        model[0].weight[:4] = 0
    layer = find_layers(model)[0][0]
    assert layer.density() == 0.75
    assert layer.dtype == "float32"


class Scaled(nn.Module):
    def forward(self, weight):
        return 2 * weight


def left_alone(change):
    model = tiny_mlp()
    model = change(model) or model
    return find_layers(model)[1]


def parametrised(model):
    nn.utils.parametrize.register_parametrization(model[0], "weight", Scaled())


def hooked(model):
    model[0].register_forward_hook(lambda module, args, output: output)


def pre_hooked(model):
    model[0].register_forward_pre_hook(lambda module, args: args)


def patched(model):
    model[0].forward = lambda x: x


def half(model):
    model[0].half()


def broken(model):
    with torch.no_grad():
        model[0].weight[0, 0] = torch.nan


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (parametrised, "replaced by someone else's code"),
        (patched, "replaced by someone else's code"),
        (hooked, "hooks of someone else"),
        (pre_hooked, "hooks of someone else"),
        (half, "float16 is not supported; load the model in float32 or bfloat16"),
        (broken, "NaN or infinite"),
    ],
)
def test_layers_that_packing_would_break_are_left_alone(change, reason):
    left = left_alone(change)
    assert reason in left["0"]
    assert {name.partition(".")[0] for name in left} == {"0"}


def test_weights_that_the_parent_reads_itself_are_left_alone():
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    with pytest.raises(NoMatch, match="TransformerEncoderLayer reads its weight itself"):
        find_layers(model)
    attention = nn.ModuleDict({"a": nn.MultiheadAttention(16, 2), "b": nn.Linear(4, 4)})
    assert find_layers(attention)[1]["a.out_proj"] == "MultiheadAttention reads its weight itself"


def test_other_matrices_are_named():
    model = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3), "linear": nn.Linear(4, 4)})
    assert find_layers(model)[1] == {"conv": "no packed form for Conv2d"}
