"""A block with shortcuts: its own class beneath, its own names, its arguments passed on."""

import copy

import pytest
import torch
from tests.models import tiny_llama
from torch import nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.rotated_block import (
    RotatedBlock,
    Shortcut,
    restore_block,
    rotate_block,
    rotated_blocks,
)

PARTS = ("before", "attention", "between", "mlp")


class Attention(nn.Module):
    def forward(self, hidden, mask=None, scale=1.0):
        return (scale * hidden if mask is None else mask * hidden), "weights"


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.between = nn.RMSNorm(4), nn.RMSNorm(4)
        self.attention, self.mlp = Attention(), nn.Linear(4, 4)

    def forward(self, hidden, scale=1.0, mask=None):
        hidden = hidden + self.attention(self.before(hidden), mask=mask, scale=scale)[0]
        return hidden + self.mlp(self.between(hidden))


def test_with_identities_it_computes_what_it_did():
    block, x = Block(), torch.randn(2, 3, 4)
    before = block(x, 0.5)
    assert rotate_block(block, PARTS, (), mlp_shortcut=True) is block
    assert torch.equal(block(x, 0.5), before)
    assert torch.equal(block(x, scale=0.5), before)
    assert torch.equal(block(hidden_states=x, scale=0.5), before)
    assert not torch.equal(block(x), before)


def test_the_shortcuts_carry_the_stream():
    block, x = Block(), torch.randn(2, 3, 4)
    rotate_block(block, PARTS, (), mlp_shortcut=True)
    nn.init.orthogonal_(block.attention_shortcut.weight)
    nn.init.orthogonal_(block.mlp_shortcut.weight)
    hidden = x @ block.attention_shortcut.weight.T + block.before(x)
    expected = hidden @ block.mlp_shortcut.weight.T + block.mlp(block.between(hidden))
    torch.testing.assert_close(block(x), expected)


def test_it_is_of_its_own_class_and_the_rotated_one():
    one, two = Block(), Block()
    rotate_block(one, PARTS, ("mlp",), mlp_shortcut=False)
    rotate_block(two, PARTS, (), mlp_shortcut=False)
    assert isinstance(one, Block) and isinstance(one, RotatedBlock)
    assert type(one) is type(two) and type(one).__name__ == "RotatedBlock"
    assert type(copy.deepcopy(one)) is type(one)
    assert copy.deepcopy(one).orthogonal == ("mlp",)
    assert list(rotated_blocks(nn.ModuleDict({"a": one, "b": Block()}))) == ["a"]


def test_restoring_leaves_nothing_behind():
    block = Block()
    attributes = set(vars(block))
    names = list(block.state_dict())
    rotate_block(block, PARTS, ("mlp",), mlp_shortcut=True)
    restore_block(block)
    assert type(block) is Block
    assert set(vars(block)) == attributes and list(block.state_dict()) == names


def test_settings_make_it_again():
    block = rotate_block(Block(), PARTS, ("mlp",), mlp_shortcut=False)
    made = RotatedBlock.from_settings(Block(), **block.settings())
    assert made.settings() == block.settings()
    assert set(made.state_dict()) == set(block.state_dict())


def test_what_does_not_fit_is_refused():
    block = rotate_block(Block(), PARTS, (), mlp_shortcut=False)
    with pytest.raises(InvalidValue, match="rotated already"):
        rotate_block(block, PARTS, (), mlp_shortcut=False)
    with pytest.raises(InvalidValue, match="a Block has no sub-layer norm"):
        rotate_block(Block(), ("norm", *PARTS[1:]), (), mlp_shortcut=False)


def test_a_shortcut_begins_as_the_identity_in_the_models_type():
    shortcut = Shortcut(3, like=torch.zeros(1, dtype=torch.bfloat16))
    assert shortcut.bias is None
    assert torch.equal(shortcut.weight, torch.eye(3, dtype=torch.bfloat16))


@torch.no_grad()
def test_it_compiles_in_one_graph():
    from sparsecraft.model.rotation import rotate

    model = tiny_llama()
    rotate(model)
    ids = torch.arange(8)[None]
    expected = model(input_ids=ids).logits
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(input_ids=ids).logits, expected)
