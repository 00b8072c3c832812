import pytest

from sparsecraft.core.errors import (
    InvalidValue,
    MissingDependency,
    SparsityError,
    UnknownName,
    check_density,
    check_sparsity,
    closest,
)


def test_unknown_name_suggests_the_nearest():
    error = UnknownName("method", "wnada", ["wanda", "magnitude"])
    assert str(error) == ("Unknown method 'wnada'. Did you mean 'wanda'? Known: magnitude, wanda.")
    assert isinstance(error, SparsityError) and isinstance(error, ValueError)


def test_unknown_name_without_a_near_one():
    assert "Did you mean" not in str(UnknownName("method", "xyz", ["wanda"]))
    assert str(UnknownName("method", "xyz", [])).endswith("Known: none.")


def test_unknown_name_lists_the_first_twenty_and_the_last():
    text = str(UnknownName("layer", "?", [f"layer{i:02}" for i in range(30)]))
    assert "layer19, ..., layer29." in text and "layer20" not in text


def test_a_special_word_behind_many_numbers_is_always_seen():
    text = str(UnknownName("claim", "x", [*(f"{i:02}" for i in range(40)), "all"]))
    assert text.endswith("18, 19, ..., all.")
    text = str(UnknownName("claim", "x", [*(f"{i:02}" for i in range(20)), "all"]))
    assert text.endswith("18, 19, all.")


def test_closest_ignores_case_and_returns_the_real_spelling():
    assert closest("erk", ["ERK", "uniform"]) == ["ERK"]


@pytest.mark.parametrize("value", [0, 0.5, 0.999, "0.25"])
def test_sparsity_in_range(value):
    assert check_sparsity(value) == float(value)


@pytest.mark.parametrize("value", [-0.1, 1, 1.0, 50, float("nan"), float("inf")])
def test_sparsity_out_of_range(value):
    with pytest.raises(InvalidValue, match=r"in \[0, 1\)"):
        check_sparsity(value)


def test_a_percentage_is_understood():
    with pytest.raises(InvalidValue, match=r"For 60 % write 0\.6"):
        check_sparsity(60)


@pytest.mark.parametrize("value", [0, -1, 1.01, float("nan")])
def test_density_out_of_range(value):
    with pytest.raises(InvalidValue, match=r"in \(0, 1\]"):
        check_density(value)


def test_density_one_is_allowed():
    assert check_density(1) == 1.0


def test_missing_dependency_says_how_to_install():
    text = str(MissingDependency("numba", "fast", "The compiled kernel"))
    assert "'numba'" in text and 'pip install "sparsecraft[fast]"' in text
