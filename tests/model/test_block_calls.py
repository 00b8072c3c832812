"""How blocks are called: from a dense pass, or without running any of them."""

from __future__ import annotations

import pytest
import torch
from tests.models import ARCHITECTURES, Blocks, batches_for
from torch import nn

from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.block_calls import Call, SharedArguments, catch_calls, record_calls
from sparsecraft.model.blocks import find_blocks


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_caught_calls_are_the_recorded_ones(name):
    model = ARCHITECTURES[name]()
    batch = batches_for(model, count=1)[0]
    blocks = list(next(iter(find_blocks(model).values())))
    with torch.no_grad():
        recorded = record_calls(model, blocks, batch)
        caught = catch_calls(model, blocks, batch)
        assert torch.equal(recorded[0].hidden, caught[0].hidden)
        x = recorded[0].hidden
        for block, one, other in zip(blocks, recorded, caught, strict=True):
            assert torch.equal(one.run(block, x), other.run(block, x))
            assert one.kwargs.keys() == other.kwargs.keys()


class Tuples(nn.Module):
    """Its blocks return tuples, of which the first is handed on."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([Pair(), Pair()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)[0]
        return x


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.down(self.up(x)), None


def test_blocks_that_return_tuples():
    model, x = Tuples(), torch.randn(2, 3, 4)
    calls = catch_calls(model, list(model.blocks), {"x": x})
    assert len(calls) == 2
    assert calls[0].hidden is x
    assert torch.equal(calls[1].run(model.blocks[1], x), model.blocks[1](x)[0])


def test_a_model_that_computes_between_its_blocks_is_refused():
    model = Blocks()
    with pytest.raises(
        InvalidValue, match="does not read what the one before it returns"
    ) as caught:
        catch_calls(model, list(model.blocks), {"x": torch.randn(2, 3, 16)})
    assert "--stream never" in str(caught.value)
    assert not any("forward" in vars(block) for block in model.blocks)


def test_blocks_that_did_not_run_are_named():
    model = Tuples()
    left_out = [*model.blocks, Pair()]
    with pytest.raises(InvalidValue, match=r"blocks \[2\] did not run"):
        record_calls(model, left_out, {"x": torch.randn(2, 3, 4)})
    with pytest.raises(InvalidValue, match="2 of 3 blocks were called"):
        catch_calls(model, left_out, {"x": torch.randn(2, 3, 4)})


def test_equal_arguments_are_held_once():
    pool = SharedArguments()
    mask = torch.ones(2, 2)
    first = pool.shared(Call(mask, (mask,), {"pair": (mask, None)}, False))
    second = pool.shared(Call(mask, (mask.clone(),), {"pair": (torch.zeros(2, 2), 3)}, False))
    assert second.args[0] is first.args[0] is first.kwargs["pair"][0]
    assert torch.equal(second.kwargs["pair"][0], torch.zeros(2, 2))
    assert second.kwargs["pair"][1] == 3
