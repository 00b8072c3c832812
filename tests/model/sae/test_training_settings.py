"""Rates, warm-ups, when a latent is dead, and what is refused."""

import pytest

from sparsecraft.methods.codes.abstopk import AbsTopK
from sparsecraft.methods.codes.relu import ReLU
from sparsecraft.model.sae import AuxK, Resampling, SAETraining


def test_the_rate_follows_the_size_of_the_dictionary():
    assert SAETraining().peak(2**14) == pytest.approx(2e-4)
    assert SAETraining().peak(2**16) == pytest.approx(1e-4)
    assert SAETraining(learning_rate=0.5).peak(2**16) == 0.5


def test_the_rate_rises_holds_and_falls():
    training = SAETraining(steps=100, learning_rate=1.0, warm_up=10, decay=0.2)
    rates = [training.rate(step, 1) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:81] == [1.0] * 72
    assert rates[90] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.05)


def test_without_warm_up_and_decay_the_rate_is_constant():
    training = SAETraining(steps=4, learning_rate=1.0, warm_up=0, decay=0.0)
    assert [training.rate(step, 1) for step in range(4)] == [1.0] * 4


def test_penalties_rise_linearly():
    training = SAETraining(steps=100, penalty_warm_up=0.1)
    assert training.warmth(0) == pytest.approx(0.1)
    assert training.warmth(9) == training.warmth(50) == 1.0
    assert SAETraining(penalty_warm_up=0.0).warmth(0) == 1.0


def test_a_latent_is_dead_after_a_tenth_of_a_short_training():
    assert SAETraining(steps=100, batch=100).silence() == 1000
    assert SAETraining(steps=10**6, batch=4096).silence() == 10_000_000
    assert SAETraining(dead_after=7).silence() == 7


def test_selections_get_auxk_by_default():
    assert SAETraining().auxiliary_of(AbsTopK(k=2)) == AuxK()
    assert SAETraining().auxiliary_of(ReLU()) is None
    assert SAETraining(auxiliary=AuxK(k=3)).auxiliary_of(ReLU()) == AuxK(k=3)
    assert SAETraining(auxiliary=None).auxiliary_of(AbsTopK(k=2)) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps=0 is not allowed: give a whole number of at least 1"),
        ({"batch": 1.5}, r"batch=1\.5 is not allowed"),
        ({"warm_up": -1}, "warm_up=-1 is not allowed: give a whole number of at least 0"),
        ({"dead_after": 0}, "dead_after=0 is not allowed"),
        ({"learning_rate": 0.0}, r"learning_rate=0\.0 is not allowed: give a number above 0"),
        ({"clip": float("nan")}, "clip=nan is not allowed"),
        ({"decay": 1.5}, r"decay=1\.5 is not allowed: give a share from 0 to 1"),
        ({"held_out": 1.0}, r"held_out=1\.0 is not allowed: give a share from 0 to 0\.9"),
        ({"decoder": "fre"}, r"Unknown decoder 'fre'\. Did you mean 'free'"),
        ({"precision": "float16"}, "Unknown precision 'float16'"),
        ({"auxiliary": "auxk"}, r"auxiliary='auxk' is not allowed: give AuxK\(\)"),
    ],
)
def test_what_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SAETraining(**settings)


@pytest.mark.parametrize(
    "settings", [{"every": 0}, {"until": 2.0}, {"encoder_norm": 0.0}, {"every": 1.5}]
)
def test_resampling_is_checked(settings):
    with pytest.raises(ValueError, match="give"):
        Resampling(**settings)


def test_resampling_happens_until_its_end():
    settings = Resampling(every=10, until=0.5)
    assert [step for step in range(1, 101) if settings.due(step, 100)] == [10, 20, 30, 40, 50]
