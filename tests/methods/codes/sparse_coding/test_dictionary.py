"""Dictionary learning: what it finds, gives up and reports; resumes; files; scikit-learn."""

import warnings

import numpy as np
import pytest
import torch

from sparsecraft.core.errors import (
    CheckpointError,
    ConvergenceWarning,
    InvalidValue,
    NonFinite,
    UnknownName,
)
from sparsecraft.core.penalties import CEL0, L0, AbsTopK
from sparsecraft.core.solvers import Stopping, lipschitz
from sparsecraft.methods.codes.sparse_coding import (
    DictionaryLearning,
    NotFitted,
    Whitening,
    as_in_paper,
    paper_penalty,
)
from sparsecraft.methods.codes.sparse_coding.batches import learn_batch

SMALL = {"batches": 12, "batch_size": 40, "strength": 0.2}


def planted(rows=400, atoms=12, width=10, active=2, seed=0):
    """Rows that are sums of two of twelve atoms, and the atoms."""
    draw = np.random.default_rng(seed)
    true = draw.normal(size=(atoms, width))
    true /= np.linalg.norm(true, axis=1, keepdims=True)
    codes = np.zeros((rows, atoms))
    for row in codes:
        row[draw.choice(atoms, active, replace=False)] = draw.choice([-1, 1], active)
    return codes @ true, true


def test_planted_atoms_are_found():
    rows, true = planted(rows=2000, width=16)
    learner = DictionaryLearning(
        12, penalty="l1", strength=0.1, batches=150, batch_size=100, learning_rate=3e-2
    )
    found = learner.fit(rows).components_
    assert np.abs(found @ true.T).max(0).min() > 0.98
    assert learner.score(rows) > 0.95
    assert learner.report_.dead == 0


@pytest.mark.parametrize("penalty", ["l1", "cel0", "half", "log", "mcp", "scad", AbsTopK(k=2)])
def test_the_error_falls_with_every_penalty(penalty):
    rows, _ = planted()
    strength = None if isinstance(penalty, AbsTopK) else 0.05
    learner = DictionaryLearning(12, penalty=penalty, strength=strength, batches=40, batch_size=50,
                                 learning_rate=2e-2)  # fmt: skip
    errors = learner.fit(rows).errors_
    assert len(errors) == 40
    assert np.mean(errors[-5:]) < 0.8 * np.mean(errors[:5])


def test_atoms_have_norm_one_and_kind_and_type_of_the_rows():
    rows, _ = planted()
    learner = DictionaryLearning(6, **SMALL).fit(rows.astype(np.float32))
    assert learner.components_.dtype == np.float32
    assert np.allclose(np.linalg.norm(learner.components_, axis=1), 1, atol=1e-6)
    assert learner.n_iter_ == 12
    assert learner.n_features_in_ == 10
    assert learner.activity_.shape == (6,)
    tensors = DictionaryLearning(6, **SMALL).fit(torch.from_numpy(rows))
    assert isinstance(tensors.components_, torch.Tensor)
    assert tensors.components_.dtype == torch.float64


def test_a_seed_gives_one_dictionary():
    rows, _ = planted()
    one, two, other = (
        DictionaryLearning(6, **SMALL, seed=seed).fit(rows).components_ for seed in (3, 3, 4)
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_the_step_is_the_gradient_summed_over_rows():
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, generator=stream, dtype=torch.float64)
    start = torch.eye(4, dtype=torch.float64) * 3
    found = learn_batch(x, start, L0(strength=0.3), step=1.0, rate=0.01, stopping=Stopping())
    codes = x * (x.abs() > np.sqrt(0.6))  # in the unit dictionary, at once
    assert torch.allclose(found.codes, codes)
    assert torch.allclose(found.dictionary, torch.eye(4) + 0.01 * codes.T @ (x - codes))
    assert found.error == pytest.approx(float((x - codes).square().mean()))
    assert not found.shortened


def test_rows_that_do_not_settle_do_not_move_the_dictionary_and_are_counted():
    rows, _ = planted()
    options = {"penalty": "l1", "strength": 1e-4, "max_steps": 1, "batches": 3, "batch_size": 40}
    with pytest.warns(ConvergenceWarning, match="120 of 120 rows did not settle and did") as told:
        learner = DictionaryLearning(6, **options).fit(rows)
    assert [each.filename for each in told] == [__file__]
    first = DictionaryLearning(6, **options)._begin(rows, anew=True)
    assert len(first) == 400
    assert learner.report_.discarded == 120
    assert learner.report_.idle_batches == 3
    assert learner.errors_ == []
    assert "120 of 120 rows did not settle and were left out (3 whole batches)" in str(
        learner.report_
    )


def test_in_the_papers_way_a_whole_batch_is_given_up():
    rows, _ = planted()
    paper = {**as_in_paper("soft", 6), "batches": 2, "batch_size": 40, "max_steps": 3}
    with pytest.warns(ConvergenceWarning, match="80 of 80 rows did not settle"):
        learner = DictionaryLearning(penalty=paper_penalty("soft", 0.01), **paper).fit(rows)
    assert learner.report_.discarded == 80
    assert learner.report_.idle_batches == 2


def test_a_step_that_would_overshoot_is_shortened_and_said():
    rows, _ = planted()
    learner = DictionaryLearning(6, **{**SMALL, "strength": 0.2}, learning_rate=100.0)
    learner.fit(100 * rows)
    assert learner.report_.shortened == 12
    assert "12 steps were shortened: lower learning_rate" in str(learner.report_)
    assert np.isfinite(learner.components_).all()
    assert learner.errors_[-1] < learner.errors_[0]


@pytest.mark.filterwarnings("ignore:.*did not settle")
@pytest.mark.parametrize(("solver", "longest"), [("ista", 2.0), ("fista", 1.0), ("lca", 2.0)])
def test_a_coding_step_too_long_for_the_dictionary_is_shortened_and_said(solver, longest):
    rows, _ = planted()
    # Atoms that are nearly one, of a norm near sqrt(6), which learning lowers.
    start = np.ones((6, 10)) + 0.01 * np.eye(6, 10)
    unit = torch.from_numpy(start / np.linalg.norm(start, axis=1)[:, None])
    step = 1.2 * longest / lipschitz(unit)
    learner = DictionaryLearning(6, **SMALL, start=start, step=step, solver=solver)
    with pytest.warns(ConvergenceWarning, match="was too long for the dictionary") as told:
        learner.fit(rows)
    count = learner.report_.coding_shortened
    assert 0 < count <= 12
    assert any(f"in {count} of 12 batches step={step!r}" in str(each.message) for each in told)
    assert f"in {count} batches the codes' step was too long" in str(learner.report_)
    assert np.isfinite(learner.components_).all()
    assert learner.n_iter_ == 12


def test_what_was_learned_with_shortened_steps_codes_rows_and_keeps_its_counts(tmp_path):
    rows, _ = planted()
    learner = DictionaryLearning(6, **SMALL, step=50.0)
    with pytest.warns(ConvergenceWarning, match="in 12 of 12 batches"):
        learner.fit(rows)
    codes = learner.transform(rows)
    assert learner.coding_report_.shortened
    assert '"auto" took its place' in str(learner.coding_report_)
    auto = DictionaryLearning(6, **SMALL).fit(rows)
    assert np.array_equal(learner.components_, auto.components_)
    assert np.array_equal(codes, auto.transform(rows))
    assert not auto.coding_report_.shortened
    learner.save(tmp_path / "a.safetensors")
    assert DictionaryLearning.load(tmp_path / "a.safetensors").report_ == learner.report_


@pytest.mark.filterwarnings("ignore:.*did not settle")
def test_the_papers_step_survives_ten_thousand_atoms():
    stream = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 256, generator=stream) * 0.3
    paper = as_in_paper("hard", 10_000) | {"batches": 1, "max_steps": 2}
    learner = DictionaryLearning(penalty=paper_penalty("hard", 0.02), **paper)
    with pytest.warns(ConvergenceWarning, match="in 1 of 1 batches step=0.05 was too long"):
        learner.fit(rows)
    assert learner.n_iter_ == 1


def test_a_warning_is_of_the_fit_that_it_follows():
    rows, _ = planted()
    learner = DictionaryLearning(6, **{**SMALL, "max_steps": 1, "penalty": "l1"})
    with pytest.warns(ConvergenceWarning, match="400 of 400 rows did not settle"):
        learner.partial_fit(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner.set_params(max_steps=2000).partial_fit(rows)
    assert learner.report_.discarded == 400


def test_no_warning_where_all_settled(recwarn):
    rows, _ = planted()
    learner = DictionaryLearning(6, **SMALL).fit(rows)
    learner.transform(rows)
    assert learner.report_.discarded == 0
    assert [each for each in recwarn if each.category is ConvergenceWarning] == []


def test_lca_learns():
    rows, true = planted(rows=2000, width=16)
    learner = DictionaryLearning(12, penalty="l1", strength=0.1, batches=150, batch_size=100,
                                 learning_rate=3e-2, solver="lca", tolerance=1e-3)  # fmt: skip
    found = learner.fit(rows).components_
    assert np.abs(found @ true.T).max(0).min() > 0.98


def test_a_budget_of_the_batch_is_kept_in_learning_and_coding():
    rows, _ = planted(rows=80)
    options = {"batches": 3, "batch_size": 40, "max_steps": 500}
    penalty = AbsTopK(k=2, scope="batch")
    with pytest.raises(InvalidValue, match='give measure="batch"'):
        DictionaryLearning(6, penalty=penalty, **options).fit(rows)
    learner = DictionaryLearning(6, penalty=penalty, measure="batch", **options).fit(rows)
    assert learner.report_.active <= 2
    assert np.count_nonzero(learner.transform(rows)) <= 2 * 80
    assert len(learner.errors_) == 3


def test_dead_atoms_are_told():
    rows, _ = planted()
    learner = DictionaryLearning(6, **{**SMALL, "penalty": "l0", "strength": 1e6}).fit(rows)
    assert learner.report_.dead == 6
    assert "6 of 6 atoms are dead" in str(learner.report_)
    assert learner.activity_.tolist() == [0.0] * 6


def test_partial_fits_go_on_from_one_another():
    rows, _ = planted(rows=80)
    options = {"batch_size": 40, "strength": 0.2}
    whole = DictionaryLearning(6, **options).partial_fit(rows)
    parts = DictionaryLearning(6, **options).partial_fit(rows[:40]).partial_fit(rows[40:])
    assert np.array_equal(whole.components_, parts.components_)
    assert parts.n_iter_ == 2


@pytest.mark.parametrize("decay", [False, True])
def test_a_fit_that_was_saved_and_killed_ends_as_if_it_were_not(tmp_path, decay):
    rows, _ = planted()
    options = {**SMALL, "decay": decay, "step": 0.05, "warm_start": True,
               "penalty": CEL0(strength=0.2), "strength": None}  # fmt: skip
    through = DictionaryLearning(6, **options).fit(rows)

    class Killed(Exception):
        pass

    learner = DictionaryLearning(6, **options)

    def progress(done, total):
        if done == 5:
            learner.save(tmp_path / "half.safetensors")
            raise Killed

    with pytest.raises(Killed):
        learner.fit(rows, progress=progress)
    resumed = DictionaryLearning.load(tmp_path / "half.safetensors")
    assert resumed.n_iter_ == 5
    resumed.fit(rows)
    assert np.array_equal(resumed.components_, through.components_)
    assert resumed.errors_ == through.errors_
    assert resumed.report_ == through.report_


def test_a_file_keeps_settings_and_preparation(tmp_path):
    rows, _ = planted()
    learner = DictionaryLearning(6, **SMALL, penalty="half", seed=2).fit(rows)
    whitening = Whitening(cutoff=0.3, scale=0.5)
    learner.save(tmp_path / "a.safetensors", whitening=whitening)
    again = DictionaryLearning.load(tmp_path / "a.safetensors")
    assert again.get_params() == learner.get_params()
    assert again.whitening_ == whitening
    assert np.array_equal(again.transform(rows), learner.transform(rows))
    assert again.coding_report_ == learner.coding_report_


def test_a_file_read_and_written_again_keeps_the_preparation(tmp_path):
    rows, _ = planted()
    whitening = Whitening(cutoff=0.3, scale=0.5)
    DictionaryLearning(6, **SMALL).fit(rows).save(tmp_path / "a", whitening=whitening)
    again = DictionaryLearning.load(tmp_path / "a")
    again.save(tmp_path / "b")
    assert DictionaryLearning.load(tmp_path / "b").whitening_ == whitening
    other = Whitening(cutoff=0.2, scale=1.0)
    again.save(tmp_path / "c", whitening=other)
    assert DictionaryLearning.load(tmp_path / "c").whitening_ == other
    again.partial_fit(rows)
    assert again.whitening_ == whitening
    again.fit(rows)  # anew, from rows of which nothing is known
    assert again.whitening_ is None


def test_files_that_cannot_be_read(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(CheckpointError, match="could not read the dictionary"):
        DictionaryLearning.load(tmp_path / "none.safetensors")
    (tmp_path / "torn.safetensors").write_bytes(b"\x08")
    with pytest.raises(CheckpointError, match="could not read the dictionary"):
        DictionaryLearning.load(tmp_path / "torn.safetensors")
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="holds no dictionary"):
        DictionaryLearning.load(tmp_path / "other.safetensors")


def test_fit_starts_anew_unless_told_to_go_on():
    rows, _ = planted()
    learner = DictionaryLearning(6, **SMALL).fit(rows)
    first = learner.components_
    assert np.array_equal(learner.fit(rows).components_, first)
    learner.set_params(warm_start=True, batches=14)
    assert learner.fit(rows).n_iter_ == 14
    assert not np.array_equal(learner.components_, first)


def test_before_a_fit_there_is_nothing():
    learner = DictionaryLearning(6)
    for ask in (
        lambda: learner.transform(np.ones((1, 4))),
        lambda: learner.components_,
        lambda: learner.report_,
        lambda: learner.save("x"),
    ):
        with pytest.raises(NotFitted, match="call fit or partial_fit first"):
            ask()
    # As scikit-learn's own error, it is caught as either.
    with pytest.raises(ValueError, match="call fit"):
        learner.transform(np.ones((1, 4)))
    with pytest.raises(AttributeError, match="call fit"):
        learner.get_feature_names_out()
    assert not hasattr(learner, "n_features_in_")


def test_the_codes_columns_have_names():
    learner = DictionaryLearning(6, **SMALL).fit(planted()[0])
    assert learner.get_feature_names_out().tolist() == [f"dictionarylearning{i}" for i in range(6)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_components": 0}, InvalidValue, "n_components=0 is not allowed"),
        ({"learning_rate": 0}, InvalidValue, "learning_rate=0 is not allowed"),
        ({"batches": 0}, InvalidValue, "batches=0 is not allowed"),
        ({"batch_size": 0}, InvalidValue, "batch_size=0 is not allowed"),
        ({"strength": -0.1}, InvalidValue, "strength=-0.1 is not allowed"),
        ({"decay": True}, InvalidValue, "need a first step"),
        ({"step": 0.0}, InvalidValue, "step=0.0 is not allowed"),
        ({"step": "long"}, UnknownName, "Unknown step 'long'"),
        ({"penalty": CEL0(norm=2.0)}, InvalidValue, "CEL0 takes its norm from the atoms"),
        ({"decay_thresholds": True}, InvalidValue, "give decay=True too"),
        ({"solver": "lars"}, UnknownName, "Unknown solver 'lars'"),
        ({"start": np.ones((3, 10))}, InvalidValue, "start has 3 atoms, but n_components is 6"),
        (
            {"start": np.ones((6, 9))},
            InvalidValue,
            "start has 9 features, but the dictionary is expecting 10",
        ),
    ],
)
def test_settings_that_are_not_allowed(options, error, message):
    with pytest.raises(error) as caught:
        DictionaryLearning(**{"n_components": 6, **options}).fit(planted()[0])
    assert message in str(caught.value)


def test_bad_rows_leave_what_was_learned():
    rows, _ = planted()
    learner = DictionaryLearning(6, **SMALL).fit(rows)
    before = learner.components_
    with pytest.raises(NonFinite, match="400 of 400 rows"):
        learner.partial_fit(rows * np.nan)
    with pytest.raises(InvalidValue, match="X has 3 features, but DictionaryLearning is"):
        learner.partial_fit(rows[:, :3])
    assert np.array_equal(learner.components_, before)


def test_scikit_learn_clones_and_pipes_and_unknown_methods_are_named():
    from sklearn.base import clone
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows, _ = planted()
    learner = DictionaryLearning(6, **SMALL).fit(rows)
    fresh = clone(learner)
    assert fresh.get_params() == learner.get_params()
    with pytest.raises(NotFitted):
        fresh.transform(rows)
    assert make_pipeline(StandardScaler(), fresh).fit_transform(rows).shape == (400, 6)
    with pytest.raises(UnknownName, match="method of the paper 'softt'"):
        paper_penalty("softt", 0.1)
    assert as_in_paper("cel0", 501)["decay"]
    assert not as_in_paper("cel0", 500)["decay"]
    assert not as_in_paper("soft", 501)["decay"]


@pytest.mark.filterwarnings("ignore:Estimator DictionaryLearning does not inherit")
def test_scikit_learns_own_checks():
    from sklearn.utils.estimator_checks import check_estimator

    expected = {
        "check_dict_unchanged": "transform leaves its report in coding_report_",
        "check_dtype_object": "what is no number is an InvalidValue here, a TypeError there",
    }
    results = check_estimator(
        DictionaryLearning(batches=3, strength=0.1),
        expected_failed_checks=expected,
        on_skip=None,
        on_fail=None,
    )
    assert len(results) > 40
    failed = {each["check_name"] for each in results if each["status"] == "failed"}
    assert failed == set()
