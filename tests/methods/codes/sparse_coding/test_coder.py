"""The sparse coder: kinds of rows, reports, debiasing, columns of any norm, bad input."""

import math

import numpy as np
import pytest
import torch

from sparsecraft.core.errors import (
    ConvergenceWarning,
    InvalidValue,
    NonFinite,
    SparsityError,
    UnknownName,
)
from sparsecraft.core.penalties import CEL0, L1, MCP, AbsTopK
from sparsecraft.methods.codes.sparse_coding import SparseCoder
from sparsecraft.methods.codes.sparse_coding import coder as coder_module


def data(rows=30, atoms=24, width=16, seed=0):
    draw = np.random.default_rng(seed)
    dictionary = draw.normal(size=(atoms, width))
    dictionary /= np.linalg.norm(dictionary, axis=1, keepdims=True)
    return draw.normal(size=(rows, width)), dictionary


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_comes_in_comes_out(dtype):
    x, dictionary = data()
    coder = SparseCoder(dictionary, penalty="l1", strength=0.3)
    codes = coder.transform(x.astype(dtype))
    assert isinstance(codes, np.ndarray)
    assert codes.dtype == dtype
    tensor = coder.transform(torch.from_numpy(x.astype(dtype)))
    assert isinstance(tensor, torch.Tensor)
    assert np.array_equal(tensor.numpy(), codes)
    assert np.allclose(coder.inverse_transform(codes), codes @ dictionary, atol=1e-5)


def test_whole_numbers_and_lists_are_numbers():
    coder = SparseCoder([[1, 0], [0, 1]], penalty="l1", strength=1.0)
    assert coder.transform([[3, 0]]).tolist() == [[2.0, 0.0]]


def test_rows_are_coded_in_batches_as_if_at_once():
    x, dictionary = data()
    whole = SparseCoder(dictionary, strength=0.1).transform(x)
    parts = SparseCoder(dictionary, strength=0.1, batch_size=7).transform(x)
    assert np.allclose(whole, parts, atol=1e-12)


def test_the_report_tells_what_did_not_settle_and_what_is_empty():
    x, dictionary = data()
    coder = SparseCoder(dictionary, penalty="l1", strength=0.3, max_steps=2)
    with pytest.warns(
        ConvergenceWarning, match="30 of 30 rows did not settle; their codes"
    ) as told:
        codes = coder.transform(x)
    assert [each.filename for each in told] == [__file__]
    assert coder.report_.unsettled == 30
    assert "30 did not settle: raise max_steps" in str(coder.report_)
    assert coder.report_.active == pytest.approx((codes != 0).sum(1).mean())
    assert coder.report_.gap > 0
    coder = SparseCoder(dictionary, penalty="l0", strength=100.0)
    assert not coder.transform(x).any()
    assert coder.report_.empty == 30
    assert coder.report_.gap is None
    assert "30 have no entry: the strength is too great" in str(coder.report_)


def test_a_jump_may_be_out_of_reach_for_a_short_step():
    x, dictionary = data()
    coder = SparseCoder(dictionary, penalty="l0", strength=0.3, step=1e-4)
    assert not coder.transform(x).any()
    assert "or, with a threshold that jumps (l0, half), the step too short" in str(coder.report_)
    assert coder.set_params(step="auto").transform(x).any()


def test_a_warning_points_at_the_callers_line_however_deep_the_call():
    x, dictionary = data()
    coder = SparseCoder(dictionary, penalty="l1", strength=0.3, max_steps=2)
    with pytest.warns(ConvergenceWarning) as told:
        coder.score(x)
    assert [each.filename for each in told] == [__file__]


def test_a_debiasing_that_ends_early_is_told(monkeypatch):
    x, dictionary = data()
    monkeypatch.setattr(
        coder_module, "debias", lambda x, atoms, codes: (codes, torch.arange(len(x)) >= 3)
    )
    coder = SparseCoder(dictionary, penalty="l1", strength=0.3, debias=True)
    with pytest.warns(ConvergenceWarning, match="3 of 30 rows were debiased only in part"):
        coder.transform(x)
    assert coder.report_.unfitted == 3


def test_lca_codes_like_the_others():
    x, dictionary = data()
    options = {"penalty": "l1", "strength": 0.5, "tolerance": 1e-9, "max_steps": 20_000}
    lca = SparseCoder(dictionary, solver="lca", **options)
    fista = SparseCoder(dictionary, solver="fista", **options)
    assert np.allclose(lca.transform(x) @ dictionary, fista.transform(x) @ dictionary, atol=1e-6)
    assert lca.report_.gap < 1e-6


def test_budgets_over_rows_need_the_batch_criterion():
    x, dictionary = data()
    coder = SparseCoder(dictionary, penalty=AbsTopK(k=3, scope="batch"))
    with pytest.raises(InvalidValue, match='give measure="batch"'):
        coder.transform(x)
    codes = coder.set_params(measure="batch", batch_size=10).transform(x)
    assert [np.count_nonzero(each) for each in np.split(codes, 3)] == [30] * 3


def test_the_codes_columns_have_names():
    coder = SparseCoder(data()[1])
    names = coder.get_feature_names_out()
    assert names.dtype == object
    assert names.tolist() == [f"sparsecoder{i}" for i in range(24)]
    assert coder.get_feature_names_out(["x"] * 16).tolist() == names.tolist()
    with pytest.raises(InvalidValue, match="should have length equal to number of features, 16"):
        coder.get_feature_names_out(["x"] * 15)


def test_debiasing_keeps_the_support_and_lowers_the_error():
    x, dictionary = data()
    coder = SparseCoder(dictionary, penalty="l1", strength=0.5, solver="fista", tolerance=1e-8)
    codes = coder.transform(x)
    again = coder.set_params(debias=True).transform(x)
    assert np.array_equal(again != 0, codes != 0)
    assert coder.report_.unfitted == 0
    errors = [np.square(x - each @ dictionary).sum(1) for each in (codes, again)]
    assert (errors[1] < errors[0]).all()


def test_cel0_takes_each_columns_norm():
    x, dictionary = data()
    norms = np.linspace(0.5, 2, 24)[:, None]
    coder = SparseCoder(dictionary * norms, strength=0.1, solver="fista", tolerance=1e-9)
    size = np.abs(coder.transform(x))
    assert (size > 0).any()
    assert ((size == 0) | (size >= math.sqrt(0.2) / norms[:, 0] - 1e-5)).all()


def test_cel0_with_another_norm_than_the_atoms_is_refused():
    x, dictionary = data()
    coder = SparseCoder(dictionary, penalty=CEL0(strength=0.1, norm=2.0))
    with pytest.raises(InvalidValue, match="CEL0 takes its norm from the atoms") as caught:
        coder.transform(x)
    assert "MCP(strength=norm * sqrt(2 * strength), reach=1 / norm**2)" in str(caught.value)
    u = torch.linspace(-3, 3, 61, dtype=torch.float64)
    for step in (0.1, 0.5):  # what the message offers is the same prox
        offered = MCP(strength=2 * math.sqrt(0.2), reach=1 / 4).prox(u, step)
        assert torch.allclose(offered, CEL0(strength=0.1, norm=2.0).prox(u, step))
    twice = SparseCoder(2 * dictionary, penalty=CEL0(strength=0.1, norm=2.0)).transform(x)
    assert np.array_equal(twice, SparseCoder(2 * dictionary, strength=0.1).transform(x))


def test_the_score_is_the_share_of_variance_explained():
    x, dictionary = data()
    coder = SparseCoder(dictionary, penalty="l1", strength=0.1)
    left = np.square(x - coder.inverse_transform(coder.transform(x))).sum()
    assert coder.score(x) == pytest.approx(1 - left / np.square(x - x.mean(0)).sum())
    nothing = SparseCoder(dictionary, penalty="l0", strength=1e4)
    assert nothing.score(x - x.mean(0)) == pytest.approx(0)


def test_scikit_learn_clones_pipes_and_searches():
    from sklearn.base import clone
    from sklearn.model_selection import GridSearchCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, dictionary = data()
    coder = SparseCoder(dictionary, penalty=CEL0(strength=0.2), max_steps=50)
    copied = clone(coder)
    assert copied is not coder
    assert copied.get_params().keys() == coder.get_params().keys()
    assert copied.penalty == CEL0(strength=0.2)
    piped = make_pipeline(StandardScaler(), SparseCoder(dictionary, strength=0.1))
    assert piped.fit(x).transform(x).shape == (30, 24)
    search = GridSearchCV(SparseCoder(dictionary, penalty="l1"), {"strength": [5.0, 0.1]}, cv=2)
    assert search.fit(x).best_params_ == {"strength": 0.1}


def test_it_shows_what_was_set():
    assert repr(SparseCoder(np.eye(2), strength=0.1)) == (
        "SparseCoder(dictionary=<ndarray (2, 2)>, strength=0.1)"
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strength": -1.0}, InvalidValue, "strength=-1.0 is not allowed"),
        ({"step": 0}, InvalidValue, "step=0 is not allowed"),
        ({"step": 50.0}, InvalidValue, "at most 2 / ||dictionary||^2"),
        ({"step": 50.0, "solver": "fista"}, InvalidValue, "at most 1 / ||dictionary||^2"),
        ({"step": 50.0, "solver": "lca"}, InvalidValue, "at most 2 / max(||dictionary||^2, 1)"),
        ({"penalty": "l3"}, UnknownName, "Unknown penalty 'l3'"),
        ({"solver": "fist"}, UnknownName, "Did you mean 'fista' or 'ista'"),
        ({"batch_size": 0}, InvalidValue, "batch_size=0 is not allowed"),
        ({"tolerance": 0}, InvalidValue, "tolerance=0 is not allowed"),
        ({"penalty": L1(), "strength": 0.1}, SparsityError, "which has its own: set it there"),
    ],
)
def test_settings_that_are_not_allowed(options, error, message):
    x, dictionary = data()
    with pytest.raises(error) as caught:
        SparseCoder(dictionary, **options).transform(x)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.full((2, 16), np.nan), NonFinite, "2 of 2 rows of X have NaN or inf"),
        (np.ones((2, 3)), InvalidValue, "X has 3 features, but SparseCoder is expecting 16"),
        (np.ones(16), InvalidValue, "Reshape your data"),
        (np.ones((0, 16)), InvalidValue, "X has 0 sample(s)"),
        (np.ones((2, 16), dtype=complex), InvalidValue, "Complex data not supported"),
        ([["a"] * 16], InvalidValue, "give real numbers"),
        (torch.ones(2, 16, dtype=torch.int64), InvalidValue, "type torch.int64"),
        (torch.ones(2, 16, dtype=torch.float16), InvalidValue, "convert it to float32"),
    ],
)
def test_rows_that_cannot_be_coded(x, error, message):
    with pytest.raises(error) as caught:
        SparseCoder(data()[1]).transform(x)
    assert message in str(caught.value)


def test_parameters_that_do_not_exist():
    with pytest.raises(UnknownName, match="Did you mean 'strength'"):
        SparseCoder(np.eye(2)).set_params(strenght=1)
