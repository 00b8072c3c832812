"""Units: what is found, what is refused, what scores and masks do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsecraft.core.errors import InvalidValue, MissingStatistic, NoMatch, UnknownName
from sparsecraft.model.units import UnitSlice, apply_units, find_units, run, unit_scores


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)
    )


class Residual(nn.Module):
    """A stem, one residual block with an inner width of its own, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Conv2d(8, 6, 3, padding=1)
        self.inner_norm = nn.BatchNorm2d(6)
        self.outer = nn.Conv2d(6, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8 * 4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.outer(torch.relu(self.inner_norm(self.inner(x))))
        x = nn.functional.max_pool2d(self.depthwise(x), 2)
        return self.head(x.flatten(1))


IMAGE = torch.linspace(-1, 1, 2 * 3 * 16).view(2, 3, 4, 4)


def test_a_neuron_owns_row_bias_norm_and_column():
    first, second = find_units(mlp())
    assert (first.name, first.kind, first.size) == ("0", "neurons", 6)
    owned = {(each.parameter, each.dim, each.outgoing) for each in first.slices}
    assert owned == {
        ("0.weight", 0, False), ("0.bias", 0, False), ("1.weight", 0, False),
        ("1.bias", 0, False), ("1.running_mean", 0, False), ("1.running_var", 0, False),
        ("3.weight", 1, True),
    }  # fmt: skip
    assert (second.name, second.size) == ("3", 5)


def test_a_residual_ties_channels_and_flatten_widens_them():
    groups = {group.name: group for group in find_units(Residual(), IMAGE)}
    assert {name: group.size for name, group in groups.items()} == {"stem": 8, "inner": 6}
    owned = {(each.parameter, each.dim): each for each in groups["stem"].slices}
    assert owned["head.weight", 1] == UnitSlice("head.weight", 1, width=4, outgoing=True)
    assert ("outer.weight", 0) in owned and ("depthwise.weight", 0) in owned
    assert not owned["depthwise.weight", 0].outgoing
    assert all(group.kind == "channels" for group in groups.values())


def test_concatenated_branches_have_offsets():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.out = nn.Linear(4, 3), nn.Linear(4, 5), nn.Linear(8, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(torch.cat([self.one(x), self.two(x).relu()], -1))

    one, two = find_units(Branches())
    assert one.slices[-1] == UnitSlice("out.weight", 1, outgoing=True)
    assert two.slices[-1] == UnitSlice("out.weight", 1, offset=3, outgoing=True)


def test_grouped_queries_are_one_head_with_their_key():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=24,
    )  # fmt: skip
    (heads,) = find_units(transformers.LlamaForCausalLM(config), kinds=["heads"])
    assert (heads.name, heads.size) == ("model.layers.0.self_attn", 2)
    widths = {each.parameter.split(".")[-2]: each.width for each in heads.slices}
    assert widths == {"q_proj": 16, "k_proj": 8, "v_proj": 8, "o_proj": 16}


def test_fused_qkv_has_three_slices_of_one_parameter():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=20, n_embd=16, n_layer=1, n_head=4, n_positions=16)
    (heads,) = find_units(transformers.GPT2Model(config), kinds=["heads"])
    fused = [each for each in heads.slices if each.parameter == "h.0.attn.c_attn.weight"]
    assert [(each.dim, each.width, each.offset) for each in fused] == [
        (1, 4, 0),
        (1, 4, 16),
        (1, 4, 32),
    ]


def test_the_model_is_left_as_it_was():
    model = mlp().train()
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    find_units(model)
    assert model.training and not model[1].training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "between", [nn.LayerNorm(6), nn.Softmax(-1), nn.GroupNorm(2, 6)], ids=lambda m: type(m).__name__
)
def test_units_under_a_normalisation_cannot_be_removed(between):
    with pytest.raises(NoMatch, match="normalised or reduced"):
        find_units(nn.Sequential(nn.Linear(4, 6), between, nn.Linear(6, 3)))


def test_an_operation_that_cannot_be_followed_is_named():
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(torch.fft.fft(self.one(x)).real)

    with pytest.raises(NoMatch, match="fft"):
        find_units(Spectrum())


def test_a_constant_of_the_same_width_freezes_the_axis():
    class Scaled(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[1](self[0](x) * torch.arange(6.0))

    with pytest.raises(NoMatch):
        find_units(Scaled(nn.Linear(4, 6), nn.Linear(6, 3)))


def test_errors_name_the_input_and_the_kind():
    with pytest.raises(UnknownName, match="neurons"):
        find_units(mlp(), kinds=["neuron"])
    with pytest.raises(NoMatch, match=r"it has \['neurons'\]"):
        find_units(mlp(), kinds=["heads"])
    with pytest.raises(InvalidValue, match="example_input"):
        find_units(mlp(), torch.rand(2, 5))
    with pytest.raises(InvalidValue, match="example_input"):
        find_units(nn.Sequential(nn.Embedding(5, 4), nn.Flatten()))


def test_masks_zero_everything_a_unit_owns_and_nothing_else():
    model = mlp()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    keep = torch.tensor([True, False, True, True, False, True])
    apply_units(model, {"0": keep})
    state = model.state_dict()
    for name in ("0.weight", "0.bias", "1.weight", "1.bias"):
        assert not state[name][~keep].any()
        assert torch.equal(state[name][keep], before[name][keep])
    assert not state["3.weight"][:, ~keep].any()
    assert torch.equal(state["3.weight"][:, keep], before["3.weight"][:, keep])
    for name in ("1.running_mean", "1.running_var", "3.bias", "5.weight"):
        assert torch.equal(state[name], before[name])


def test_bad_masks_are_refused():
    with pytest.raises(UnknownName, match="Did you mean"):
        apply_units(
            Residual(), {"stemm": torch.ones(8, dtype=torch.bool)}, find_units(Residual(), IMAGE)
        )
    with pytest.raises(InvalidValue, match=r"shape \(6,\)"):
        apply_units(mlp(), {"0": torch.ones(5, dtype=torch.bool)})
    with pytest.raises(InvalidValue, match=r"torch.bool"):
        apply_units(mlp(), {"0": torch.ones(6)})
    with pytest.raises(InvalidValue, match="at least one"):
        apply_units(mlp(), {"0": torch.zeros(6, dtype=torch.bool)})


def test_scores_are_mean_activation_times_outgoing_norm():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
        model[2].weight.copy_(torch.tensor([[3.0, 1.0], [4.0, 0.0]]))
    batches = [torch.tensor([[1.0, 2.0]]), torch.tensor([[-1.0, 4.0], [2.0, 0.0]])]
    scores = unit_scores(model, find_units(model), batches)
    torch.testing.assert_close(scores["0"], torch.tensor([(1 + 0 + 2) / 3 * 5.0, (2 + 4 + 0) / 3]))


def test_a_head_scores_its_norm_and_padding_does_not_count():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=12,
    )  # fmt: skip
    model = transformers.BertModel(config).eval()
    ids, mask = torch.arange(8).view(2, 4), torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0]])
    groups = find_units(model)
    padded = unit_scores(model, groups, [{"input_ids": ids, "attention_mask": mask}])
    short = unit_scores(model, groups, [{"input_ids": ids[:, :3], "attention_mask": mask[:, :3]}])
    for name, values in padded.items():
        torch.testing.assert_close(values, short[name])

    seen = []
    out = model.encoder.layer[0].attention.output.dense
    out.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    run(model, {"input_ids": ids[:, :3]})
    norms = seen[0].reshape(6, 2, 8).norm(dim=-1).mean(0)
    columns = out.weight.detach().view(16, 2, 8).movedim(1, 0).reshape(2, -1).norm(dim=1)
    torch.testing.assert_close(short["encoder.layer.0.attention"], norms * columns)


def test_scores_need_a_batch():
    model = mlp()
    with pytest.raises(MissingStatistic):
        unit_scores(model, find_units(model), [])


def test_further_ways_to_write_a_network():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both, self.out = nn.Linear(8, 24), nn.Linear(12, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gate, up = self.both(x).chunk(2, -1)
            return self.out(nn.functional.silu(gate) * up)

    (gated,) = find_units(Gated())
    assert [s.offset for s in gated.slices if s.parameter == "both.weight"] == [0, 12]

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = self.qkv(x).view(2, 5, 3, 4, 4).permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.out(y.transpose(1, 2).reshape(2, 5, 16))

    (heads,) = find_units(Attention(), torch.rand(2, 5, 16))
    assert (heads.kind, heads.size) == ("heads", 4)
    assert [s.offset for s in heads.slices if s.parameter == "qkv.weight"] == [0, 16, 32]

    class Einsum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.rand(8, 6)), nn.Parameter(torch.rand(6, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.einsum("th,ho->ot", torch.einsum("tc,ch->th", x, self.a).relu(), self.b)

    (hidden,) = find_units(Einsum(), torch.rand(5, 8))
    assert {(s.parameter, s.dim, s.outgoing) for s in hidden.slices} == {
        ("a", 1, False), ("b", 0, True)
    }  # fmt: skip
