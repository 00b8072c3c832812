"""Ctrl-C in a training: the step is finished and kept, and the training goes on from there."""

import os
import signal

import pytest
import torch

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.seeds import generator
from sparsecraft.methods.codes.mutual_choice import MutualChoice
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.sae import SAETraining, SparseAutoencoder, train_together
from sparsecraft.model.sae.counters import FiringCounter

pytestmark = pytest.mark.usefixtures("usual_interrupts")
PLAN = SAETraining(steps=7, batch=32, learning_rate=3e-3, checkpoint_every=5)


def rows():
    return torch.randn(300, 12, generator=generator(1, "rows"))


def pair():
    return [SparseAutoencoder(12, 48, TopK(k=3)), SparseAutoencoder(12, 24, MutualChoice(k=2))]


def weights(saes):
    return [tensor for sae in saes for tensor in sae.state_dict().values()]


def press_within(monkeypatch, step):
    """Presses Ctrl-C between the move of the weights and the count of the first autoencoder."""
    usual, calls = FiringCounter.add_counts, 0

    def add_counts(self, counts, rows):
        nonlocal calls
        calls += 1
        if calls == 2 * step - 1:
            os.kill(os.getpid(), signal.SIGINT)
        usual(self, counts, rows)

    monkeypatch.setattr(FiringCounter, "add_counts", add_counts)


@pytest.mark.parametrize("step", [3, 5, 7], ids=["between", "at a checkpoint", "the last"])
def test_it_goes_on_after_the_whole_step_bit_for_bit(tmp_path, monkeypatch, step):
    whole = train_together(pair(), rows(), PLAN)
    press_within(monkeypatch, step)
    stopped = pair()
    with pytest.raises(KeyboardInterrupt):
        train_together(stopped, rows(), PLAN, tmp_path)
    monkeypatch.undo()
    kept = torch.load(tmp_path / "training.pt")["trainers"]
    assert [trainer["steps_done"] for trainer in kept] == [step, step]
    left = [SparseAutoencoder.from_pretrained(tmp_path / f"sae-{n}") for n in range(2)]
    assert all(map(torch.equal, weights(left)[:4], weights(stopped)[:4]))
    resumed = train_together(pair(), rows(), PLAN, tmp_path)
    assert resumed[0].report.resumed_from == step
    assert all(map(torch.equal, weights(resumed), weights(whole)))
    assert resumed[1].report.history == whole[1].report.history


def test_without_a_directory_the_step_is_whole_too(monkeypatch):
    class Stopped(Exception):
        pass

    def stop(stage, done, steps):
        if done == 3:
            raise Stopped

    expected, stopped = pair(), pair()
    with pytest.raises(Stopped):
        train_together(expected, rows(), PLAN, progress=stop)
    press_within(monkeypatch, 3)
    with pytest.raises(KeyboardInterrupt):
        train_together(stopped, rows(), PLAN)
    assert all(
        torch.equal(one.nan_to_num(), other.nan_to_num())
        for one, other in zip(weights(stopped), weights(expected), strict=True)
    )


def test_a_second_one_does_not_wait(tmp_path):
    def press_twice(stage, done, steps):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_together(pair(), rows(), PLAN, tmp_path, press_twice)
    assert not (tmp_path / "training.pt").exists()


class Nameless(TopK):
    info = property(lambda self: self.absent)


def test_what_cannot_be_written_is_refused_before_the_first_step(tmp_path):
    told = []
    nameless = SparseAutoencoder(12, 48, Nameless(k=3))
    with pytest.raises(InvalidValue, match=r"Nameless has no name to be found by: register"):
        nameless.fit(rows(), PLAN, directory=tmp_path, progress=lambda *said: told.append(said))
    sae = pair()[0]
    sae.info["model"] = object()
    with pytest.raises(InvalidValue, match="info or the activation's settings hold what JSON"):
        sae.fit(rows(), PLAN, directory=tmp_path, progress=lambda *said: told.append(said))
    assert told == []
    assert nameless.fit(rows(), PLAN).report.steps == 7
