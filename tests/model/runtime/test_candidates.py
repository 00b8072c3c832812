import pytest

from sparsecraft.model.runtime.candidates import FORMATS, applicable

DTYPES = ("float32", "bfloat16", "int8")


def names(**changes):
    facts = {"own": "float32", "density": 1.0, "gated": False, "rows": 1, **changes}
    found, out = applicable(FORMATS, DTYPES, **facts)
    return [candidate.name for candidate in found], out


def test_the_own_form_comes_first_and_is_always_there():
    assert names()[0][0] == "torch float32"
    assert names(own="bfloat16")[0][0] == "torch bfloat16"
    found, _ = applicable(("csr",), ("int8",), own="bfloat16", density=1.0, gated=False, rows=1)
    assert [candidate.name for candidate in found] == ["torch bfloat16"]


def test_dense_layers_have_dense_candidates():
    found, out = names()
    assert found == [
        "torch float32",
        "torch bfloat16",
        "torch int8",
        "dense float32",
        "dense bfloat16",
        "dense int8",
    ]
    assert out["bitmask int8"] == "0% zeros are too few"
    assert out["gated int8"] == "no gate, and no zeros in its input"


def test_wider_types_are_passed_over():
    found, out = names(own="bfloat16")
    assert not [name for name in found if "float32" in name]
    assert out["dense float32"] == "wider than the layer's bfloat16"


def test_sparse_formats_apply_where_they_are_smaller():
    half, out = names(density=0.5)
    assert {"bitmask float32", "bitmask bfloat16", "bitmask int8", "csr float32"} <= {*half}
    assert "csr bfloat16" in out  # 0.5 * (16 + 16) bits are no less than 16
    few, _ = names(density=0.1)
    assert {"csr float32", "csr bfloat16"} <= {*few}


def test_gates_serve_one_row():
    one, _ = names(gated=True)
    assert {"gated float32", "by_input float32"} <= {*one}
    many, out = names(gated=True, rows=32)
    assert "by_input int8" in many
    assert out["gated int8"] == "a gate serves one token; 32 rows are computed whole"


def test_int4_is_there_only_when_asked_for():
    assert not [name for name in names()[0] if "int4" in name]
    found, _ = applicable(("torch",), ("int4",), own="float32", density=1.0, gated=False, rows=1)
    assert [candidate.name for candidate in found] == ["torch float32", "torch int4"]


@pytest.mark.parametrize("cuda", [False, True])
def test_each_device_has_its_own_formats(cuda):
    found, out = names(density=0.5, cuda=cuda)
    assert ("semi_structured bfloat16" in found) is cuda
    assert ("dense float32" in found) is not cuda
    if not cuda:
        assert out["semi_structured bfloat16"] == "not measured: no GPU"
