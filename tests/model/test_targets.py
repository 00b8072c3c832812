"""Which parameters are targets, and that every parameter is accounted for once."""

import pytest
import torch
from torch import nn

from sparsecraft.core.errors import NoMatch
from sparsecraft.model.targets import find_targets


class Conv1D(nn.Module):
    """A linear layer with its weight as (in, out), as GPT-2 has it."""

    def __init__(self, out, width):
        super().__init__()
        self.nf = out
        self.weight = nn.Parameter(torch.randn(width, out))

    def forward(self, x):
        return x @ self.weight


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_experts = 3
        self.gate_up_proj = nn.Parameter(torch.randn(3, 8, 4))


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, 3))
        self.norm = nn.LayerNorm(3)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.c_attn = Conv1D(12, 4)
        self.conv = nn.Conv2d(4, 8, 3)
        self.up = nn.ConvTranspose2d(8, 2, 2)
        self.experts = Experts()
        self.odd = Odd()
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embed.weight


def test_every_parameter_stands_once_and_the_counts_add_up():
    model = Small()
    rows = find_targets(model).table()
    assert [row["name"] for row in rows] == [name for name, _ in model.named_parameters()]
    assert sum(row["numel"] for row in rows) == sum(p.numel() for p in model.parameters())
    assert all(row["reason"] for row in rows)


def test_reasons_name_what_no_rule_covers_and_what_is_tied():
    reasons = {row["name"]: row["reason"] for row in find_targets(Small()).table()}
    assert "no rule covers" in reasons["odd.table"]
    assert "bias or a normalisation" in reasons["odd.norm.weight"]
    assert reasons["embed.weight"] == "embedding; tied to head.weight, counted once"


def test_matrices_are_output_by_input_whatever_the_layer():
    model = Small()
    targets = find_targets(model)
    shapes = {t.name: t.matrix_shape for t in targets}
    assert shapes == {
        "c_attn[q]": (4, 4),
        "c_attn[k]": (4, 4),
        "c_attn[v]": (4, 4),
        "conv": (8, 36),
        "up": (2, 32),
        "experts.gate_up_proj[0]": (8, 4),
        "experts.gate_up_proj[1]": (8, 4),
        "experts.gate_up_proj[2]": (8, 4),
    }
    by_name = {t.name: t for t in targets}
    weight = model.c_attn.weight
    torch.testing.assert_close(by_name["c_attn[k]"].matrix(weight), weight[:, 4:8].T)


def test_write_puts_a_matrix_back_where_it_came_from():
    model = Small()
    for target in find_targets(model):
        parameter = model.get_parameter(target.parameter)
        before = parameter.detach().clone()
        target.write(parameter, target.matrix(before) * 2)
        changed = parameter.detach() != before
        assert int(changed.sum()) == target.numel
        target.write(parameter, target.matrix(before))
        torch.testing.assert_close(parameter.detach(), before)


def test_masks_of_slices_join_into_the_parameter_s_mask():
    model = Small()
    targets = find_targets(model, "c_attn")
    matrices = {t.name: torch.zeros(t.matrix_shape, dtype=torch.bool) for t in targets[:1]}
    mask = targets.mask(model, matrices)["c_attn.weight"]
    assert mask.shape == (4, 12)
    assert not mask[:, :4].any()
    assert mask[:, 4:].all()


@pytest.mark.parametrize(
    ("select", "names"),
    [
        ("conv", {"conv"}),
        ("Conv2d", {"conv"}),
        ("re:^c_.*k\\]$", {"c_attn[k]"}),
        (["*", "!experts*", "!c_attn*"], {"conv", "up"}),
        (["!experts*", "!c_attn*"], {"conv", "up"}),
        (lambda name, module: isinstance(module, nn.Conv2d), {"conv"}),
    ],
)
def test_the_language_of_targets(select, names):
    assert {t.name for t in find_targets(Small(), select)} == names


def test_no_match_lists_the_closest_names():
    with pytest.raises(NoMatch, match=r"'cnv' match no layer. Closest: conv"):
        find_targets(Small(), "cnv")
    with pytest.raises(NoMatch, match=r"'!?wrong"):
        find_targets(Small(), ["conv", "!wrong"])
    with pytest.raises(NoMatch, match="no linear or convolutional"):
        find_targets(nn.LayerNorm(3))


def test_by_default_only_the_blocks_of_a_transformer_are_targets():
    block = lambda: nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))  # noqa: E731
    model = nn.ModuleDict({"stem": nn.Linear(3, 4), "blocks": nn.ModuleList([block(), block()])})
    targets = find_targets(model)
    assert {t.name for t in targets} == {"blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2"}
    reasons = {row["name"]: row["reason"] for row in targets.table()}
    assert "outside the repeated blocks" in reasons["stem.weight"]
