import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.kernels.linear import Bitmask, ByInput, Csr, Dense, Gate, SemiStructured
from sparsecraft.kernels.linear.quantise import quantised

FOUND = [(kind, dtype) for kind in (Dense, ByInput, Bitmask, Csr) for dtype in kind.dtypes]
SMALL = torch.tensor([[0.0, 5.0, 0.0], [7.0, 0.0, -127.0]])


def test_bit_masks_by_hand():
    packed = Bitmask.pack(SMALL)
    assert packed.bits.shape == (2, 8)
    assert packed.bits[:, 0].tolist() == [0b010, 0b101]
    assert not packed.bits[:, 1:].any()
    assert packed.values.tolist() == [5.0, 7.0, -127.0]
    assert packed.starts.tolist() == [0, 1, 3]


def test_compressed_rows_by_hand():
    packed = Csr.pack(SMALL, "bfloat16")
    assert packed.columns.tolist() == [1, 0, 2]
    assert packed.columns.dtype == torch.uint16
    assert packed.values.tolist() == [5.0, 7.0, -127.0]
    assert packed.starts.tolist() == [0, 1, 3]


def test_stored_by_input_by_hand():
    packed = ByInput.pack(SMALL, "int8")
    assert packed.weight.tolist() == [[0, 7], [127, 0], [0, -127]]
    assert packed.scales.tolist() == pytest.approx([5 / 127, 1.0])


def test_numpy_reads_the_bits_of_a_mask():
    weight = torch.randn(5, 70) * (torch.rand(5, 70) < 0.5)
    packed = Bitmask.pack(weight)
    mask = np.unpackbits(packed.bits.numpy(), axis=1, bitorder="little")[:, :70].astype(bool)
    read = np.zeros((5, 70), dtype=np.float32)
    read[mask] = packed.values.numpy()
    assert np.array_equal(read, weight.numpy())


@pytest.mark.parametrize("kind", [Dense, ByInput, Bitmask, Csr])
def test_float_types_come_back_bit_equal(kind):
    weight = torch.randn(9, 70) * (torch.rand(9, 70) < 0.5)
    assert torch.equal(kind.pack(weight).unpack(), weight)
    assert torch.equal(kind.pack(weight, "bfloat16").unpack(), weight.bfloat16())


@given(st.lists(st.floats(-8, 8, width=32), min_size=6, max_size=6))
def test_int8_is_off_by_half_a_step_at_most(values):
    weight = torch.tensor(values).view(2, 3)
    entries, scales = quantised(weight)
    assert entries.abs().max() <= 127
    error = (entries * scales[:, None] - weight).abs()
    assert bool((error <= scales[:, None] * 0.5001).all())


@pytest.mark.parametrize(("kind", "dtype"), FOUND)
def test_tensors_make_the_same_weight(kind, dtype):
    weight = torch.randn(9, 70) * (torch.rand(9, 70) < 0.5)
    packed = kind.pack(weight, dtype)
    again = kind.from_tensors(packed.shape, packed.dtype, packed.tensors())
    assert (packed.shape, packed.dtype) == ((9, 70), dtype)
    assert torch.equal(again.unpack(), packed.unpack())
    assert again.nbytes == packed.nbytes >= sum(t.nbytes for t in packed.tensors().values())
    assert packed.device.type == "cpu"
    moved = packed.to("meta") if kind in (Dense, ByInput) else packed.to("cpu")
    assert moved.shape == packed.shape


def test_bytes_at_half_the_entries():
    weight = torch.ones(512, 1024)
    weight[:, ::2] = 0
    entries = weight.numel()
    assert Dense.pack(weight).nbytes == 4 * entries
    assert Bitmask.pack(weight, "bfloat16").nbytes == 1.125 * entries + 8 * 513
    assert Bitmask.pack(weight, "int8").nbytes == 0.625 * entries + 8 * 513 + 4 * 512
    assert Csr.pack(weight).nbytes == 3 * entries + 8 * 513


@pytest.mark.parametrize("kind", [Dense, ByInput, Bitmask, Csr])
def test_what_cannot_be_packed_is_refused(kind):
    with pytest.raises(ValueError, match=r"stores float32.*not 'float64'"):
        kind.pack(SMALL, "float64")
    with pytest.raises(ValueError, match=r"shape \(3,\) is no matrix"):
        kind.pack(torch.ones(3))
    with pytest.raises(ValueError, match=r"shape \(0, 3\) is no matrix"):
        kind.pack(torch.ones(0, 3))
    with pytest.raises(ValueError, match=r"torch.int64 is not allowed: give floats"):
        kind.pack(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="NaN or infinite"):
        kind.pack(torch.tensor([[1.0, torch.inf]]))


def test_too_many_inputs_for_16_bit_columns():
    with pytest.raises(ValueError, match=r"65537 inputs are too many.*use the format bitmask"):
        Csr.pack(torch.ones(1, 65537))
    assert Csr.pack(torch.ones(1, 65536)).columns[-1] == 65535
    with pytest.raises(ValueError, match=r"stores float32, bfloat16, not 'int8'"):
        Csr.pack(SMALL, "int8")


@pytest.mark.parametrize("kind", [Dense, ByInput, Bitmask, Csr])
def test_inputs_that_do_not_fit_are_refused(kind):
    packed = kind.pack(SMALL)
    with pytest.raises(ValueError, match=r"\(1, 4\) does not fit a weight of 2 x 3: give"):
        packed.multiply(torch.ones(1, 4))
    with pytest.raises(ValueError, match=r"\(3,\) does not fit"):
        packed.multiply(torch.ones(3))
    with pytest.raises(ValueError, match=r"torch.float16 is not allowed: give float32 or bfloat16"):
        packed.multiply(torch.ones(1, 3, dtype=torch.float16))
    with pytest.raises(ValueError, match=r"bias of shape \(3,\) is not allowed: \(2,\)"):
        packed.multiply(torch.ones(1, 3), torch.ones(3))


def test_gates_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="either threshold or keep"):
        Gate()
    with pytest.raises(ValueError, match="either threshold or keep"):
        Gate(threshold=1.0, keep=2)
    with pytest.raises(ValueError, match="at least 1 input"):
        Gate(keep=0)
    with pytest.raises(ValueError, match="at least 0"):
        Gate(threshold=-0.1)
    with pytest.raises(ValueError, match="at least 0"):
        Gate(threshold=float("nan"))
    packed = ByInput.pack(SMALL)
    with pytest.raises(ValueError, match="keep=4 exceeds the 3 inputs"):
        packed.multiply_gated(torch.ones(1, 3), Gate(keep=4))
    with pytest.raises(ValueError, match=r"norms of shape \(2,\) do not fit 3 inputs"):
        packed.multiply_gated(torch.ones(1, 3), Gate(keep=1, norms=torch.ones(2)))


def test_tensors_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"needs the tensors \['bits', 'values'\], not \['bits'\]"):
        Bitmask.from_tensors((2, 3), "float32", {"bits": torch.zeros(2, 8, dtype=torch.uint8)})
    bits = Bitmask.pack(SMALL).bits
    with pytest.raises(ValueError, match=r"keep 3 entries .* there are 2 values"):
        Bitmask.from_tensors((2, 3), "float32", {"bits": bits, "values": torch.ones(2)})
    past = bits.clone()
    past[0, 0] = 0b1000
    with pytest.raises(ValueError, match="past 3 columns"):
        Bitmask.from_tensors((2, 3), "float32", {"bits": past, "values": torch.ones(3)})
    with pytest.raises(ValueError, match=r"'weight' .* must be torch.int8 of shape \(2, 3\)"):
        Dense.from_tensors((2, 3), "int8", {"weight": SMALL, "scales": torch.ones(2)})
    rows = Csr.pack(SMALL).tensors()
    with pytest.raises(ValueError, match="a column exceeds the 2 inputs"):
        Csr.from_tensors((2, 2), "float32", rows)
    with pytest.raises(ValueError, match="do not ascend from 0 to 3"):
        Csr.from_tensors((2, 3), "float32", {**rows, "starts": torch.tensor([0, 4, 3])})


def test_semi_structured_needs_two_of_four_and_a_gpu():
    with pytest.raises(ValueError, match="not 2:4"):
        SemiStructured.pack(torch.ones(2, 4))
    with pytest.raises(ValueError, match="not 2:4"):
        SemiStructured.pack(torch.ones(2, 6))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"needs a CUDA device.*the format bitmask holds 2:4"):
            SemiStructured.pack(torch.tensor([[1.0, 0.0, 2.0, 0.0]]))


def test_gate_masks_by_hand():
    x = torch.tensor([[3.0, -1.0, 2.0], [0.0, 0.0, torch.nan]])
    assert Gate(keep=1).mask(x).tolist() == [[True, False, False], [False, False, True]]
    assert Gate(threshold=1.0).mask(x).tolist() == [[True, False, True], [False, False, True]]
    norms = torch.tensor([0.0, 9.0, 1.0])
    assert Gate(keep=2, norms=norms).mask(x)[0].tolist() == [False, True, True]


def test_importing_the_formats_imports_neither_numba_nor_triton():
    code = (
        "import sys, sparsecraft.kernels.linear;"
        "sys.exit('numba' in sys.modules or 'triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
