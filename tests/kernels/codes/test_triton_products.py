"""The Triton kernels' arithmetic, run line by line on a processor with PyTorch in Triton's place.

This says nothing of their compilation or speed, which need a GPU.
"""

import itertools
import types

import pytest
import torch

from sparsecraft.kernels.codes import primitives_torch, triton_products


class Pointer:
    """A place, or a block of places, in the memory of a tensor."""

    def __init__(self, tensor, offset=0):
        self.memory, self.offset = tensor.view(-1), offset
        self.dtype = types.SimpleNamespace(element_ty=tensor.dtype)

    def __add__(self, step):
        return Pointer(self.memory, self.offset + step)


class Language(types.SimpleNamespace):
    """What the kernels use of triton.language; a masked place may lie outside, another may not."""

    float32, int64 = torch.float32, torch.int64
    arange = staticmethod(torch.arange)
    place: tuple[int, ...] = ()

    def program_id(self, axis):
        return torch.tensor(self.place[axis])

    def zeros(self, shape, dtype):
        return torch.zeros(shape, dtype=dtype)

    def sum(self, block, axis):
        return block.sum(axis)

    def load(self, pointer, mask=None, other=0):
        if mask is None:
            return pointer.memory[pointer.offset]
        mask = mask.expand(torch.broadcast_shapes(mask.shape, pointer.offset.shape))
        read = pointer.memory[torch.where(mask, pointer.offset, 0)]
        return torch.where(mask, read, torch.tensor(other, dtype=read.dtype))

    def store(self, pointer, values, mask):
        pointer.memory[pointer.offset[mask]] = values[mask]


class Grid:
    """A compiled kernel, indexed by its grid."""

    def __init__(self, on_grid):
        self.on_grid = on_grid

    def __getitem__(self, grid):
        return self.on_grid(grid)


@pytest.fixture(autouse=True)
def language(monkeypatch):
    language = Language()

    def compiled(kernel):
        def on_grid(grid):
            def run(*arguments, **sizes):
                told = [Pointer(a) if isinstance(a, torch.Tensor) else a for a in arguments]
                for language.place in itertools.product(*map(range, grid)):
                    kernel(*told, **sizes)

            return run

        return Grid(on_grid)

    monkeypatch.setattr(triton_products, "_compiled", compiled)
    monkeypatch.setattr(triton_products, "tl", language)


def case(width, dtype=torch.float32):
    stream = torch.Generator().manual_seed(width)
    counts = torch.tensor([3, 0, 17, 8, 1, 33])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    columns = torch.randint(0, 11, (int(starts[-1]),), generator=stream)
    values = torch.randn(len(columns), generator=stream).to(dtype)
    x, weight = torch.randn(6, width, generator=stream), torch.randn(11, width, generator=stream)
    return starts, columns, values, x.to(dtype), weight.to(dtype)


@pytest.mark.parametrize("width", [1, 128, 300])
def test_they_are_the_reference(width):
    starts, columns, values, x, weight = case(width)
    sums = triton_products.weighted_sums(starts, columns, values, weight)
    expected = primitives_torch.weighted_sums(starts, columns, values, weight)
    assert torch.allclose(sums, expected, atol=1e-4, rtol=1e-5)
    products = triton_products.sampled_products(starts, columns, x, weight)
    expected = primitives_torch.sampled_products(starts, columns, x, weight)
    assert torch.allclose(products, expected, atol=1e-4, rtol=1e-5)


def test_half_precision_is_rounded_once():
    starts, columns, values, _, weight = case(40, torch.bfloat16)
    sums = triton_products.weighted_sums(starts, columns, values, weight)
    exact = primitives_torch.weighted_sums(starts, columns, values.float(), weight.float())
    assert sums.dtype == torch.bfloat16
    assert torch.allclose(sums, exact.bfloat16(), atol=1e-6, rtol=0.01)


def test_no_entries():
    starts, columns = torch.zeros(3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    weight = torch.ones(4, 5)
    sums = triton_products.weighted_sums(starts, columns, torch.zeros(0), weight)
    assert torch.equal(sums, torch.zeros(2, 5))
    assert len(triton_products.sampled_products(starts, columns, torch.ones(2, 5), weight)) == 0
