import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sparsecraft.core.allocation import (
    ALLOCATIONS,
    ER,
    ERK,
    ERKPlus,
    Given,
    Uniform,
    UniformPlus,
    parse_allocation,
)
from sparsecraft.core.errors import BudgetError, InvalidValue, UnknownName
from sparsecraft.core.mask import Mask

MLP = {"a": (300, 784), "b": (100, 300), "c": (10, 100)}
CONV = {"c1": (16, 3, 3, 3), "c2": (32, 16, 3, 3), "skip": (32, 16, 1, 1), "fc": (10, 32)}

layer_shapes = st.tuples(st.integers(1, 64), st.integers(1, 64)) | st.tuples(
    st.integers(1, 32), st.integers(1, 32), st.integers(1, 5), st.integers(1, 5)
)
networks = st.lists(layer_shapes, min_size=2, max_size=6).map(
    lambda shapes: {f"layer{i}": shape for i, shape in enumerate(shapes)}
)
densities = st.floats(0.01, 1.0)


def kept(shapes, found):
    return sum(found[name] * math.prod(shape) for name, shape in shapes.items())


@pytest.mark.parametrize("name", ALLOCATIONS)
@given(networks, densities)
def test_the_budget_holds(name, shapes, density):
    try:
        found = ALLOCATIONS[name]()(shapes, density)
    except BudgetError:
        assume(False)
    total = sum(math.prod(shape) for shape in shapes.values())
    assert list(found) == list(shapes)
    assert all(0 < d <= 1 for d in found.values())
    assert kept(shapes, found) == pytest.approx(density * total, rel=1e-9)


@pytest.mark.parametrize("allocation", [Uniform(), ER(), ERK(), ERK(power=0.5)])
def test_uniform_er_and_erk_meet_every_budget(allocation):
    for density in (1e-3, 0.05, 0.5, 0.95, 1.0):
        found = allocation(CONV, density)
        total = kept(CONV, dict.fromkeys(CONV, 1.0))
        assert kept(CONV, found) == pytest.approx(density * total, rel=1e-9)


@given(densities)
def test_er_is_erk_on_matrices(density):
    assert ER()(MLP, density) == pytest.approx(ERK()(MLP, density), rel=1e-12)


def test_er_leaves_the_kernel_out_of_the_proportion():
    er, erk = ER()(CONV, 0.05), ERK()(CONV, 0.05)
    assert er["c2"] == pytest.approx(er["skip"])
    assert erk["c2"] < erk["skip"]


def test_erk_by_hand():
    # raw: a 6/8, b 8/16; both below 1 at density .5: eps = .5 * 24 / (6 + 8).
    found = ERK()({"a": (2, 4), "b": (4, 4)}, 0.5)
    assert found == pytest.approx({"a": 12 / 14 * 0.75, "b": 12 / 14 * 0.5})


def test_erk_keeps_what_would_exceed_one_dense_and_solves_again():
    found = ERK()(MLP, 0.5)
    assert found["b"] == found["c"] == 1.0
    assert found["a"] == pytest.approx((0.5 * 266200 - 31000) / 235200)


def test_erk_layers_that_tie_become_dense_together():
    shapes = {"big": (100, 100), "one": (2, 3), "two": (2, 3)}
    found = ERK()(shapes, 0.5)
    assert found["one"] == found["two"] == 1.0


def test_power_zero_is_uniform():
    assert ERK(power=0.0)(CONV, 0.3) == pytest.approx(dict.fromkeys(CONV, 0.3))


def test_uniform_plus_by_hand():
    shapes = {"first": (10, 10), "mid": (100, 100), "last": (10, 50)}
    found = UniformPlus()(shapes, 0.1)
    assert found["first"] == 1.0 and found["last"] == 0.2
    assert found["mid"] == pytest.approx((0.1 * 10600 - 100 - 0.2 * 500) / 10000)
    assert UniformPlus()(shapes, 0.5)["last"] == 0.5


def test_uniform_plus_as_in_the_official_code_misses_the_budget():
    shapes = {"first": (10, 10), "mid": (100, 100), "last": (10, 50)}
    loose = UniformPlus(exact_budget=False)
    assert loose(shapes, 0.1)["mid"] == pytest.approx((0.1 * 10600 - 100 - 0.2 * 500) / 10600)
    assert loose(shapes, 0.5) == {"first": 1.0, "mid": 0.5, "last": 0.5}


def test_uniform_plus_names_the_layers_in_the_way():
    with pytest.raises(BudgetError, match=r"c1 \(dense\) and fc"):
        UniformPlus()(CONV, 0.01)
    with pytest.raises(BudgetError, match="at least two layers"):
        UniformPlus()({"only": (4, 4)}, 0.5)
    with pytest.raises(UnknownName, match="fc"):
        UniformPlus(last="fcc")(CONV, 0.5)


def test_erk_plus_fixes_the_last_layer():
    found = ERKPlus()(CONV, 0.2)
    assert found["fc"] == 1.0
    others = {name: shape for name, shape in CONV.items() if name != "fc"}
    sizes = {name: math.prod(shape) for name, shape in CONV.items()}
    left = (0.2 * sum(sizes.values()) - sizes["fc"]) / (sum(sizes.values()) - sizes["fc"])
    assert {n: found[n] for n in others} == pytest.approx(ERK()(others, left))


def test_erk_plus_names_the_layer_in_the_way():
    with pytest.raises(BudgetError, match="fc at 1 alone holds 320"):
        ERKPlus()(CONV, 0.01)


def test_given():
    mask = Mask({name: _ones(shape, half=name == "a") for name, shape in MLP.items()})
    allocation = Given.from_mask(mask)
    assert allocation(MLP, mask.density) == {"a": 0.5, "b": 1.0, "c": 1.0}
    with pytest.raises(BudgetError, match=r"keep 0\.5582 .* but 0\.1000 was asked"):
        allocation(MLP, 0.1)
    with pytest.raises(BudgetError, match="no density was given for"):
        allocation({**MLP, "d": (3, 3)}, 0.5)


@pytest.mark.parametrize("density", [0, -0.1, 1.5])
@pytest.mark.parametrize("name", ALLOCATIONS)
def test_density_is_checked(name, density):
    with pytest.raises(InvalidValue, match="density"):
        ALLOCATIONS[name]()(CONV, density)


def test_shapes_are_checked():
    with pytest.raises(BudgetError, match="no layers"):
        ERK()({}, 0.5)
    with pytest.raises(InvalidValue, match="bias"):
        ERK()({"bias": (3,)}, 0.5)


def test_parse():
    assert parse_allocation("erk") == ERK()
    assert parse_allocation(ERK(power=2)) == ERK(power=2)
    with pytest.raises(UnknownName, match="Did you mean 'uniform'"):
        parse_allocation("unifrm")


def _ones(shape, half):
    import torch

    keep = torch.ones(shape, dtype=torch.bool)
    if half:
        keep[: shape[0] // 2] = False
    return keep
