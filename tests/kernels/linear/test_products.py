"""Every product of every format, by every instruction set, against float64."""

import pytest
import torch

from sparsecraft.kernels.backends import use_backend
from sparsecraft.kernels.linear import FORMATS, Bitmask, ByInput, Csr, Dense, Gate, native_status

FOUND = [(kind, dtype) for kind in (Dense, ByInput, Bitmask, Csr) for dtype in kind.dtypes]
SHAPES = [(1, 1), (3, 7), (37, 130), (66, 64), (70, 257), (5, 1000)]
ROWS = [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 32, 33, 65]


def weight(outputs, inputs, density=0.5, seed=0):
    made = torch.Generator().manual_seed(seed)
    full = torch.randn(outputs, inputs, generator=made)
    return full * (torch.rand(outputs, inputs, generator=made) < density)


def inputs_like(rows, inputs, seed=1):
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(seed))


def exact(x, packed, bias=None):
    product = x.double() @ packed.unpack().double().t()
    return product if bias is None else product + bias.double()


def room(x, packed):
    """What float32 sums may be away from exact ones: relative to the sum of sizes."""
    return 3e-6 * (x.double().abs() @ packed.unpack().double().abs().t()) + 1e-12


def far(found, wanted, allowed):
    return ((found.double() - wanted).abs() > allowed).sum().item()


@pytest.mark.parametrize(("kind", "dtype"), FOUND)
def test_products_are_those_of_float64(isa, kind, dtype):
    for outputs, inputs in SHAPES:
        packed = kind.pack(weight(outputs, inputs), dtype)
        bias = torch.randn(outputs, generator=torch.Generator().manual_seed(2))
        for rows in ROWS if outputs == 37 else (1, 4, 9):
            x = inputs_like(rows, inputs)
            found = packed.multiply(x, bias)
            assert found.shape == (rows, outputs)
            assert found.dtype == torch.float32
            allowed = room(x, packed) + 1e-6
            assert far(found, exact(x, packed, bias), allowed) == 0, (outputs, inputs, rows)
            assert far(packed.multiply(x), exact(x, packed), allowed) == 0
            assert far(packed.reference(x, bias), exact(x, packed, bias), allowed) == 0


@pytest.mark.parametrize(("kind", "dtype"), FOUND)
def test_bfloat16_inputs_give_bfloat16_rounded_once(isa, kind, dtype):
    packed = kind.pack(weight(37, 130), dtype)
    x = inputs_like(2, 130).bfloat16()
    bias = torch.ones(37, dtype=torch.bfloat16)
    found = packed.multiply(x, bias)
    assert found.dtype == torch.bfloat16
    wanted = exact(x, packed, bias)
    assert far(found, wanted, wanted.abs() * 2**-7 + 1e-2) == 0
    many = packed.multiply(x.repeat(20, 1), bias)
    assert far(many, wanted.repeat(20, 1), wanted.abs().repeat(20, 1) * 2**-7 + 2e-2) == 0


@pytest.mark.parametrize(("kind", "dtype"), FOUND)
def test_inputs_need_not_be_contiguous(isa, kind, dtype):
    packed = kind.pack(weight(37, 130), dtype)
    turned = inputs_like(130, 3).t()
    strided = inputs_like(3, 260)[:, ::2]
    for x in (turned, strided):
        assert not x.is_contiguous()
        assert far(packed.multiply(x), exact(x, packed), room(x, packed) + 1e-6) == 0


@pytest.mark.parametrize(("kind", "dtype"), FOUND)
@pytest.mark.parametrize("density", [0.0, 0.02, 1.0])
def test_empty_rows_and_full_ones(isa, kind, dtype, density):
    dense = weight(40, 130, density)
    dense[3], dense[-1] = 0, 0
    packed = kind.pack(dense, dtype)
    for rows in (1, 3, 12):
        x = inputs_like(rows, 130)
        found = packed.multiply(x)
        assert far(found, exact(x, packed), room(x, packed) + 1e-6) == 0
        assert not found[:, 3].any()
        assert not found[:, -1].any()


@pytest.mark.parametrize("dtype", ByInput.dtypes)
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 33])
def test_gated_products_read_what_the_mask_keeps(isa, dtype, rows):
    norms = torch.rand(130, generator=torch.Generator().manual_seed(3))
    packed = ByInput.pack(weight(150, 130, 1.0), dtype)
    bias = torch.ones(150)
    x = inputs_like(rows, 130)
    gates = [
        Gate(threshold=0.7),
        Gate(threshold=0.3, norms=norms),
        Gate(threshold=0.0),
        Gate(threshold=1e9),
        Gate(keep=1),
        Gate(keep=61),
        Gate(keep=77, norms=norms),
        Gate(keep=130),
    ]
    for gate in gates:
        kept = x.masked_fill(~gate.mask(x), 0)
        found = packed.multiply_gated(x, gate, bias)
        assert far(found, exact(kept, packed, bias), room(kept, packed) + 1e-6) == 0, gate


def test_of_equal_scores_the_first_are_kept(isa):
    packed = ByInput.pack(torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0]]))
    x = torch.tensor([[1.0, -1.0, 1.0, 3.0, 1.0]])
    found = [packed.multiply_gated(x, Gate(keep=keep)).item() for keep in range(1, 6)]
    assert found == [24.0, 25.0, 23.0, 27.0, 43.0]


def test_a_score_at_the_threshold_is_not_kept(isa):
    packed = ByInput.pack(torch.tensor([[1.0, 2.0, 4.0]]))
    x = torch.tensor([[0.5, -0.75, 1.0]])
    assert packed.multiply_gated(x, Gate(threshold=0.75)).item() == 4.0


@pytest.mark.parametrize("gate", [Gate(threshold=0.5), Gate(keep=3)])
@pytest.mark.parametrize("rows", [1, 9])
def test_a_broken_activation_shows_in_a_gated_product(isa, gate, rows):
    packed = ByInput.pack(weight(20, 8, 1.0))
    x = inputs_like(rows, 8)
    x[0, 5] = torch.nan
    assert packed.multiply_gated(x, gate)[0].isnan().all()


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize(("kind", "dtype"), FOUND)
def test_what_is_not_finite_passes_through(isa, kind, dtype, broken):
    packed = kind.pack(weight(20, 130, 1.0), dtype)
    x = inputs_like(2, 130)
    x[1, 70] = broken
    found = packed.multiply(x)
    assert found[0].isfinite().all()
    assert not found[1].isfinite().any()


@pytest.mark.parametrize("size", [1e-38, 1e-20, 1e20, 1e34])
def test_int8_products_hold_for_inputs_of_any_size(isa, size):
    packed = Bitmask.pack(weight(20, 130), "int8")
    x = inputs_like(2, 130) * size
    found = packed.multiply(x)
    assert far(found, exact(x, packed), room(x, packed) + 1e-44) == 0


def test_int8_products_of_very_unequal_inputs(isa):
    packed = Bitmask.pack(weight(20, 130), "int8")
    x = inputs_like(1, 130)
    x[0, 3] = 1000.0
    assert far(packed.multiply(x), exact(x, packed), room(x, packed)) == 0


def test_rows_of_nothing(isa):
    for kind, dtype in FOUND:
        packed = kind.pack(weight(5, 7), dtype)
        assert packed.multiply(torch.empty(0, 7)).shape == (0, 5)
        if kind is ByInput:
            assert packed.multiply_gated(torch.empty(0, 7), Gate(keep=2)).shape == (0, 5)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads_gives_the_same(isa, threads):
    x = inputs_like(3, 512)
    dense = weight(601, 512)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        for kind in (Dense, ByInput, Bitmask, Csr):
            packed = kind.pack(dense, "bfloat16")
            assert far(packed.multiply(x), exact(x, packed), room(x, packed) + 1e-6) == 0
    finally:
        torch.set_num_threads(before)


def test_numba_is_obeyed_or_refused():
    x = inputs_like(3, 130)
    with use_backend("numba"):
        packed = ByInput.pack(weight(37, 130), "bfloat16")
        assert far(packed.multiply(x), exact(x, packed), room(x, packed) + 1e-6) == 0
        assert (
            far(Csr.pack(weight(37, 130)).multiply(x), exact(x, Csr.pack(weight(37, 130))), 1e-4)
            == 0
        )
        with pytest.raises(ValueError, match=r"no product for the format bitmask in float32"):
            Bitmask.pack(weight(37, 130)).multiply(x)


def test_torch_is_obeyed():
    x = inputs_like(3, 130)
    with use_backend("torch"):
        for kind, dtype in FOUND:
            packed = kind.pack(weight(37, 130), dtype)
            assert far(packed.multiply(x), exact(x, packed), room(x, packed) + 1e-6) == 0


@pytest.mark.parametrize(("kind", "dtype"), FOUND)
def test_gradients_reach_the_input_and_the_bias(kind, dtype):
    packed = kind.pack(weight(37, 130), dtype)
    x = inputs_like(3, 130).requires_grad_()
    bias = torch.zeros(37, requires_grad=True)
    factors = inputs_like(3, 37, seed=5)
    (packed.multiply(x, bias) * factors).sum().backward()
    torch.testing.assert_close(x.grad, factors @ packed.unpack().float())
    torch.testing.assert_close(bias.grad, factors.sum(0))


def test_gradients_of_a_gated_product_reach_what_was_kept():
    packed = ByInput.pack(weight(37, 130))
    x = inputs_like(3, 130).requires_grad_()
    gate = Gate(keep=40, norms=torch.linspace(0, 1, 130))
    packed.multiply_gated(x, gate).sum().backward()
    wanted = packed.unpack().sum(0).expand(3, -1) * gate.mask(x)
    torch.testing.assert_close(x.grad, wanted)


@pytest.mark.parametrize(("kind", "dtype"), FOUND)
def test_operators_have_the_shapes_that_they_promise(kind, dtype):
    from torch._subclasses.fake_tensor import FakeTensorMode

    packed = kind.pack(weight(37, 130), dtype)
    mode = FakeTensorMode()
    parts = {
        name: mode.from_tensor(tensor)
        for name, tensor in vars(packed).items()
        if isinstance(tensor, torch.Tensor)
    }
    plain = {name: value for name, value in vars(packed).items() if name not in parts}
    found = kind(**plain, **parts).multiply(mode.from_tensor(inputs_like(3, 130)))
    assert (found.shape, found.dtype, found.device.type) == ((3, 37), torch.float32, "cpu")


NORMS = torch.linspace(0, 1, 70)


@pytest.mark.parametrize("gate", [(None, None, None), (0.5, None, None), (None, 9, NORMS)])
def test_the_gated_operator_is_one_as_pytorch_wants_it(gate):
    x = inputs_like(2, 70).requires_grad_()
    packed = ByInput.pack(weight(20, 70))
    arguments = (x, torch.ones(20), packed.weight, packed.scales, *gate)
    found = torch.library.opcheck(torch.ops.sparsecraft.gated.default, arguments)
    assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize(("kind", "dtype"), [(Dense, "int8"), (Bitmask, "int8"), (Csr, "float32")])
def test_operators_are_such_as_pytorch_wants_them(kind, dtype):
    x = inputs_like(2, 70).requires_grad_()
    packed = kind.pack(weight(20, 70), dtype)
    parts = [packed.tensors()[name] for name in packed.tensors() if name != "scales"]
    if kind is Bitmask:
        parts += [packed.starts, packed.scales, 70]
    parts += [packed.scales] if kind is Dense else [70] if kind is Csr else []
    operator = getattr(torch.ops.sparsecraft, kind.name).default
    found = torch.library.opcheck(operator, (x, torch.ones(20), *parts))
    assert set(found.values()) == {"SUCCESS"}


def test_compiled_graphs_hold_the_operator():
    seen = []

    def inspect(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    packed = Dense.pack(weight(37, 130), "int8")
    gated = ByInput.pack(weight(130, 37))
    gate = Gate(keep=9)

    def both(x):
        return gated.multiply_gated(packed.multiply(x), gate)

    x = inputs_like(2, 130)
    with torch.no_grad():
        found = torch.compile(both, backend=inspect, fullgraph=True)(x)
        assert torch.equal(found, both(x))
    assert any("sparsecraft.dense" in name for name in seen)
    assert any("sparsecraft.gated" in name for name in seen)


def test_native_code_runs_here_wherever_there_is_a_compiler():
    import shutil

    status = native_status()
    assert status["available"] == bool(shutil.which("g++") or shutil.which("clang++")), status


def test_every_format_is_listed_by_its_name():
    assert list(FORMATS) == ["dense", "by_input", "bitmask", "csr", "semi_structured"]
