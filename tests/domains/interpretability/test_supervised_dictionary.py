"""Supervised dictionaries: codes by averaging and by least squares, edits, weights, files."""

import itertools

import pytest
import torch

from sparsecraft.core.errors import CheckpointError, InvalidValue, NonFinite, UnknownName
from sparsecraft.domains.interpretability.supervised_dictionary import (
    EDIT_METHODS,
    SupervisedDictionary,
)


def factorial():
    """A balanced design: every colour with every size, twice."""
    pairs = [*itertools.product(("red", "green", "blue"), (1, 2))] * 2
    attributes = {"colour": [c for c, _ in pairs], "size": [s for _, s in pairs]}
    x = torch.randn(len(pairs), 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, attributes


def unbalanced():
    x, attributes = factorial()
    keep = [0, 1, 2, 3, 4, 6, 9]
    return x[keep], {name: [values[i] for i in keep] for name, values in attributes.items()}


def test_mean_codes_by_hand():
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 6.0]])
    known = SupervisedDictionary().fit(x, {"a": ["u", "u", "v"]})
    assert known.bias.tolist() == [2.0, 2.0]
    assert known.codes["a"].tolist() == [[0.0, -2.0], [0.0, 4.0]]
    assert known.reconstruct({"a": ["v", "u"]}).tolist() == [[2.0, 6.0], [2.0, 0.0]]


def test_means_are_least_squares_where_the_design_is_balanced():
    x, attributes = factorial()
    mean = SupervisedDictionary("mean").fit(x, attributes)
    mse = SupervisedDictionary("mse").fit(x, attributes)
    for name in attributes:
        torch.testing.assert_close(mean.codes[name], mse.codes[name])
    torch.testing.assert_close(mean.reconstruct(attributes), mse.reconstruct(attributes))


def test_least_squares_is_never_worse_and_has_the_mean_as_bias():
    x, attributes = unbalanced()
    mean, mse = (SupervisedDictionary(kind).fit(x, attributes) for kind in ("mean", "mse"))
    errors = [(each.reconstruct(attributes) - x).square().sum() for each in (mean, mse)]
    assert errors[1] < errors[0]
    torch.testing.assert_close(mse.bias, x.mean(0))
    # The residual of a least-squares fit is orthogonal to every column of the design.
    residual = x - mse.reconstruct(attributes)
    for name, index in mse.indices(attributes).items():
        for place in range(len(mse.values[name])):
            torch.testing.assert_close(
                residual[index == place].sum(0), torch.zeros(5, dtype=torch.float64)
            )


@pytest.mark.parametrize("kind", ["mean", "mse"])
def test_weights_sum_to_one(kind):
    x, attributes = unbalanced()
    weights = SupervisedDictionary(kind).fit(x, attributes).weights(attributes)
    total = sum(weights.values())
    torch.testing.assert_close(total, torch.ones(len(x), dtype=torch.float64))


@pytest.mark.parametrize("method", EDIT_METHODS)
def test_to_edit_a_reconstruction_is_to_reconstruct_the_edit(method):
    x, attributes = factorial()
    known = SupervisedDictionary().fit(x, attributes)
    new = {"size": [3 - size for size in attributes["size"]]}
    edited = known.edit(known.reconstruct(attributes), attributes, new, method)
    expected = known.reconstruct({**attributes, **new})
    if method == "arithmetic":
        torch.testing.assert_close(edited, expected)
    else:
        code = known.code_of("size", attributes["size"])
        after = known.code_of("size", new["size"])
        unit = code / code.norm(dim=1, keepdim=True)
        left = ((edited - after) * unit).sum(1)
        mean = (known.bias * unit).sum(1) if method == "mean_subspace" else torch.zeros_like(left)
        torch.testing.assert_close(left, mean)


def test_back_and_forth_is_nothing():
    x, attributes = factorial()
    known = SupervisedDictionary().fit(x, attributes)
    new = {"colour": ["red"] * len(x)}
    there = known.edit(x, attributes, new)
    torch.testing.assert_close(known.edit(there, new, {"colour": attributes["colour"]}), x)


def test_round_trip(tmp_path):
    x, attributes = factorial()
    known = SupervisedDictionary("mse").fit(x, attributes)
    known.info = {"prompts": "six", "seed": 3}
    known.save(tmp_path / "known")
    again = SupervisedDictionary.load(tmp_path / "known")
    assert again.values == known.values and again.info == known.info
    assert torch.equal(again.reconstruct(attributes), known.reconstruct(attributes))
    with pytest.raises(CheckpointError, match="holds no supervised dictionary"):
        SupervisedDictionary.load(tmp_path)


def test_round_trip_of_coupled_attributes(tmp_path):
    """Values such as (io, io_pos), nested ones and None come back as what they were."""
    x, attributes = factorial()
    pairs = list(zip(attributes["colour"], attributes["size"], strict=True))
    coupled = {"pair": pairs, "nested": [((colour, None), True) for colour, _ in pairs]}
    known = SupervisedDictionary().fit(x, coupled)
    known.save(tmp_path / "known")
    again = SupervisedDictionary.load(tmp_path / "known")
    assert again.values == known.values and ("red", 1) in again.values["pair"]
    assert torch.equal(again.reconstruct(coupled), known.reconstruct(coupled))
    edited = again.edit(x, coupled, {"pair": [("blue", 2)] * len(x)})
    assert torch.equal(edited, known.edit(x, coupled, {"pair": [("blue", 2)] * len(x)}))


def test_values_that_json_has_not_are_refused(tmp_path):
    x, attributes = factorial()
    known = SupervisedDictionary().fit(x, {"set": [frozenset({c}) for c in attributes["colour"]]})
    with pytest.raises(InvalidValue, match="Values: text, numbers or tuples"):
        known.save(tmp_path / "known")
    assert not (tmp_path / "known").exists()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"colour": ["red"] * 12}, InvalidValue, "'colour' has the value 'red' in every row"),
        ({"size": [1, 2]}, InvalidValue, "'size' has 2 values for 12 activations"),
    ],
)
def test_attributes_that_cannot_be_fitted(change, error, text):
    x, attributes = factorial()
    with pytest.raises(error, match=text):
        SupervisedDictionary().fit(x, {**attributes, **change})


def test_errors_name_what_is_wrong():
    x, attributes = factorial()
    known = SupervisedDictionary().fit(x, attributes)
    with pytest.raises(UnknownName, match="Unknown value of 'colour' 'violet'"):
        known.reconstruct({**attributes, "colour": ["violet"] * 12})
    with pytest.raises(UnknownName, match="'size'"):
        known.reconstruct({"colour": attributes["colour"]})
    with pytest.raises(UnknownName, match="edit method"):
        known.edit(x, attributes, attributes, "addition")
    with pytest.raises(UnknownName, match="kind of codes"):
        SupervisedDictionary("median")
    with pytest.raises(InvalidValue, match="call fit"):
        SupervisedDictionary().reconstruct(attributes)
    with pytest.raises(NonFinite, match="NaN"):
        SupervisedDictionary().fit(x * float("nan"), attributes)
    with pytest.raises(InvalidValue, match="no attribute was given"):
        SupervisedDictionary().fit(x, {})


def test_digits_are_a_nearest_mean_model():
    """Real images: the class by the nearest code is the class by the nearest mean."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    x, y = torch.tensor(digits.data), torch.tensor(digits.target)
    known = SupervisedDictionary().fit(x[:1000], {"digit": y[:1000]})
    near = torch.cdist(x[1000:], known.bias + known.codes["digit"]).argmin(1)
    means = torch.stack([x[:1000][y[:1000] == value].mean(0) for value in range(10)])
    assert torch.equal(near, torch.cdist(x[1000:], means).argmin(1))
    assert (near == y[1000:]).double().mean() > 0.8
