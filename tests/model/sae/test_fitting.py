"""fit: what is learnt, reported, kept, resumed and refused."""

import copy
import json
import os
import signal

import numpy as np
import pytest
import torch

from sparsecraft.core.errors import CheckpointError, InvalidValue, MissingStatistic, NonFinite
from sparsecraft.core.fidelity import ReconstructionSums
from sparsecraft.core.seeds import generator
from sparsecraft.methods.codes.abstopk import AbsTopK
from sparsecraft.methods.codes.gradient_topk import GradientTopK
from sparsecraft.methods.codes.mutual_choice import MutualChoice
from sparsecraft.methods.codes.relu import ReLU
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.activation_store import ActivationStore
from sparsecraft.model.sae import (
    SAETraining,
    SparseAutoencoder,
    train_together,
)
from sparsecraft.model.sae.trainer import Trainer

SHORT = SAETraining(steps=6, batch=32, learning_rate=3e-3, checkpoint_every=2)


def dictionary():
    draw = torch.randn(24, 12, generator=generator(0, "dictionary"))
    return draw / draw.norm(dim=1, keepdim=True)


def data(rows=400, seed=1):
    """Sums of three of 24 directions in 12 dimensions, far from zero."""
    draw = generator(seed, "codes")
    chosen = torch.rand(rows, 24, generator=draw).topk(3, dim=1).indices
    sizes = 0.5 + torch.rand(rows, 3, generator=draw)
    return (sizes[..., None] * dictionary()[chosen]).sum(1) * 5 + 2.0


def weights(sae):
    return {name: value.clone() for name, value in sae.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def assert_goes_on(make, directory, x, training=SHORT, stop=3):
    """Stops a training, takes it up, and compares it with one that was not stopped."""
    whole = make()
    whole.fit(x, training)

    class Stopped(Exception):
        pass

    def stopping(stage, done, steps):
        if done == stop:
            raise Stopped

    with pytest.raises(Stopped):
        make().fit(x, training, directory=directory, progress=stopping)
    resumed = make()
    resumed.fit(x, training, directory=directory)
    assert_same(weights(resumed), weights(whole))
    assert resumed.report.history == whole.report.history
    assert resumed.report.resumed_from == stop - stop % training.checkpoint_every
    assert resumed.report.fvu == whole.report.fvu


def test_it_learns_and_says_how_well():
    sae = SparseAutoencoder(12, 48, TopK(k=3))
    before = sae.score(data(200, seed=2))
    assert sae.fit(data(4000), SAETraining(steps=200, batch=128, learning_rate=1e-2)) is sae
    after, report = sae.score(data(200, seed=2)), sae.report
    assert after > max(before, 0.0) + 0.5
    assert after > 0.75
    assert report.fvu == pytest.approx(1 - after, abs=0.05)
    assert report.l0 <= 3
    assert (report.tokens, report.measured_rows) == (200 * 128, 400)
    assert report.measured_on == "held-out rows"
    assert report.losses["reconstruction"] < report.history[0]["reconstruction"] / 3
    assert json.loads(json.dumps(report.to_json()))["learning_rate"] == 1e-2
    assert "FVU" in str(report)


def test_what_is_reported_is_of_raw_activations_by_the_folded_autoencoder():
    store = ActivationStore.from_tensor(data())
    sae = SparseAutoencoder(12, 48, TopK(k=3)).fit(store, SHORT)
    held_out = store.split(SHORT.held_out, SHORT.seed)[1]
    x = held_out.rows(torch.arange(len(held_out))).x
    sums = ReconstructionSums()
    sums.add(x, sae(x))
    assert sae.report.fvu == pytest.approx(sums.fvu, rel=1e-6)
    assert sae.report.l0 == pytest.approx(float((sae.encode(x) != 0).sum(1).double().mean()))
    norms = data().norm(dim=1).mean()
    assert sae.report.scale == pytest.approx(float(12**0.5 / norms), rel=0.05)


def test_units_of_the_activations_do_not_matter():
    one = SparseAutoencoder(12, 48, TopK(k=3)).fit(data(), SHORT)
    other = SparseAutoencoder(12, 48, TopK(k=3)).fit(data() * 1024, SHORT)
    torch.testing.assert_close(other.encode(data() * 1024), one.encode(data()))
    torch.testing.assert_close(other(data() * 1024), one(data()) * 1024)


def test_arrays_and_tensors_are_the_same_and_give_back_their_type():
    x = data()
    one = SparseAutoencoder(12, 48, TopK(k=3)).fit(x, SHORT)
    other = SparseAutoencoder(12, 48, TopK(k=3)).fit(x.numpy(), SHORT)
    assert_same(weights(one), weights(other))
    z = other.transform(x.numpy())
    assert isinstance(z, np.ndarray)
    assert z.shape == (400, 48)
    assert np.array_equal(z, one.transform(x).numpy())
    back = other.inverse_transform(z)
    assert isinstance(back, np.ndarray)
    torch.testing.assert_close(torch.from_numpy(back), one(x))
    assert one.score(x) == other.score(x.numpy())


def test_fit_transform_and_its_options(tmp_path):
    sae = SparseAutoencoder(12, 48, TopK(k=3))
    z = sae.fit_transform(data(), SHORT, directory=tmp_path / "run")
    assert torch.equal(z, sae.transform(data()))
    assert (tmp_path / "run" / "training.pt").is_file()


def test_codes_do_not_invert_where_a_row_is_needed():
    for form, what in (({"row_norm": "unit"}, "row_norm"), ({"skip": True}, "skip")):
        sae = SparseAutoencoder(12, 48, TopK(k=3), **form)
        with pytest.raises(InvalidValue, match=f"with {what} a reconstruction needs the row"):
            sae.inverse_transform(torch.zeros(2, 48))


def test_the_mean_scores_zero():
    sae, x = SparseAutoencoder(12, 48, ReLU()), data()
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)
        sae.b_dec.copy_(x.mean(0))
    assert sae.score(x) == pytest.approx(0.0, abs=1e-5)


def test_rows_of_the_decoder_keep_norm_one_in_units_of_the_training():
    sae = SparseAutoencoder(12, 48, TopK(k=3)).fit(data(), SHORT)
    norms = sae.W_dec.norm(dim=1) * sae.report.scale
    torch.testing.assert_close(norms, torch.ones(48))
    free = SparseAutoencoder(12, 48, ReLU()).fit(
        data(), SAETraining(steps=6, batch=32, decoder="free", learning_rate=3e-3)
    )
    assert float((free.W_dec.detach().norm(dim=1) * free.report.scale - 1).abs().max()) > 1e-3


def test_training_goes_on_from_trained_weights():
    x = data(2000)
    training = SAETraining(steps=100, batch=128, learning_rate=3e-3)
    sae = SparseAutoencoder(12, 48, TopK(k=3)).fit(x, training)
    first = sae.report.fvu
    again = sae.fit(x, SAETraining(steps=1, batch=128, learning_rate=1e-9))
    assert again.report.fvu == pytest.approx(first, rel=1e-3)
    assert sae.fit(x, training).report.fvu < first


def test_trained_rows_of_several_norms_are_not_changed_silently():
    sae = SparseAutoencoder(12, 48, ReLU()).fit(
        data(), SAETraining(steps=20, batch=32, decoder="free", learning_rate=0.1)
    )
    before = weights(sae)
    with pytest.raises(InvalidValue, match=r"norms from .*decoder='free'"):
        sae.fit(data(), SHORT)
    assert_same(weights(sae), before)


def test_a_transcoder_learns_its_target():
    x = data(2000)
    target = x @ torch.randn(12, 5, generator=generator(4, "map")) * 30
    store = ActivationStore.from_tensor(x, target=target)
    sae = SparseAutoencoder(12, 48, TopK(k=3), d_out=5, skip=True)
    sae.fit(store, SAETraining(steps=300, batch=128, learning_rate=1e-2))
    assert sae.report.fvu < 0.1
    assert sae.report.target_scale != sae.report.scale
    error = (sae(x) - target).square().sum() / (target - target.mean(0)).square().sum()
    assert float(error.detach()) == pytest.approx(sae.report.fvu, abs=0.05)


def test_batch_level_codes_have_thresholds_after_a_fit():
    sae = SparseAutoencoder(12, 48, MutualChoice(k=3)).fit(data(), SHORT)
    assert sae.report.notes == ["thresholds were set on 360 training rows"]
    train = ActivationStore.from_tensor(data()).split(SHORT.held_out, SHORT.seed)[0]
    assert float((sae.encode(next(train.batches(360)).x) != 0).sum()) == 3 * 360
    x = data(50, seed=5)
    alone = torch.cat([sae.encode(row) for row in x.split(1)])
    torch.testing.assert_close(sae.encode(x), alone)


def test_running_thresholds_stay_where_asked():
    plan = SAETraining(**{**vars(SHORT), "threshold_rows": 0})
    sae = SparseAutoencoder(12, 48, MutualChoice(k=3)).fit(data(), plan)
    assert sae.report.notes == ["thresholds are the running ones of the training"]
    exact = SparseAutoencoder(12, 48, MutualChoice(k=3)).fit(data(), SHORT)
    assert float(sae.own.state["threshold"]) != float(exact.own.state["threshold"])


def test_frozen_thresholds_keep_k_entries_on_average():
    sae, x = SparseAutoencoder(12, 48, MutualChoice(k=3)).fit(data(), SHORT), data(seed=6)
    assert sae.freeze_thresholds(x, rows=1000, batch=64) is sae
    assert float((sae.transform(x) != 0).sum()) == 3 * len(x)


def test_before_a_fit_batch_level_codes_refuse_rows_alone():
    sae = SparseAutoencoder(12, 48, MutualChoice(k=3))
    with pytest.raises(InvalidValue, match=r"MutualChoice selects over the batch.*freeze"):
        sae.transform(data())
    with pytest.raises(InvalidValue, match="TopK decides for each row alone"):
        SparseAutoencoder(12, 48, TopK(k=3)).freeze_thresholds(data())
    with pytest.raises(InvalidValue, match="rows=0"):
        sae.freeze_thresholds(data(), rows=0)


def test_auxk_brings_dead_latents_back():
    """Half of the latents hardly fire at first."""
    dead = {}
    for name, auxiliary in {"without": None, "with": "auto"}.items():
        sae = SparseAutoencoder(12, 48, TopK(k=3))
        with torch.no_grad():
            sae.b_enc[:24] = -2.0
        training = SAETraining(
            steps=200, batch=64, learning_rate=1e-2, dead_after=640, warm_up=0, auxiliary=auxiliary
        )
        dead[name] = sae.fit(data(2000), training).report.dead
    assert dead["without"] > 0.4
    assert dead["with"] < dead["without"] * 2 / 3


def test_several_on_one_stream_are_what_each_is_alone():
    makers = [
        lambda: SparseAutoencoder(12, 48, TopK(k=3)),
        lambda: SparseAutoencoder(12, 16, ReLU(l1=0.1)),
        lambda: SparseAutoencoder(12, 24, AbsTopK(k=2), prefixes=(8, 24)),
    ]
    plans = [SHORT, SAETraining(**{**vars(SHORT), "decoder": "free"}), SHORT]
    together = train_together([make() for make in makers], data(), plans)
    for make, plan, sae in zip(makers, plans, together, strict=True):
        assert_same(weights(make().fit(data(), plan)), weights(sae))


def test_what_cannot_go_on_one_stream():
    sae = SparseAutoencoder(12, 48, TopK(k=3))
    with pytest.raises(InvalidValue, match=r"must have the same steps, and these have \[6, 7\]"):
        train_together(
            [sae, copy.deepcopy(sae)],
            data(),
            [SHORT, SAETraining(**{**vars(SHORT), "steps": 7})],
        )
    with pytest.raises(InvalidValue, match="1 trainings for 2 autoencoders"):
        train_together([sae, copy.deepcopy(sae)], data(), [SHORT])
    with pytest.raises(InvalidValue, match="given twice"):
        train_together([sae, sae], data(), SHORT)


@pytest.mark.parametrize(
    "make",
    [
        lambda: SparseAutoencoder(12, 48, AbsTopK(k=3), prefixes=(16, 48)),
        lambda: SparseAutoencoder(12, 48, MutualChoice(k=3), row_norm="layer"),
    ],
)
def test_stopped_and_taken_up_equals_uninterrupted(tmp_path, make):
    assert_goes_on(make, tmp_path / "run", data())


def test_a_finished_training_is_not_done_again(tmp_path):
    x = data()
    one = SparseAutoencoder(12, 48, TopK(k=3)).fit(x, SHORT, directory=tmp_path)
    told = []
    again = SparseAutoencoder(12, 48, TopK(k=3), seed=9)
    again.fit(x, SHORT, directory=tmp_path, progress=lambda *said: told.append(said))
    assert told == []
    assert_same(weights(again), weights(one))


def test_a_checkpoint_of_the_middle_is_of_use(tmp_path):
    class Stopped(Exception):
        pass

    def stop(stage, done, steps):
        if done == 4:
            raise Stopped

    x, sae = data(), SparseAutoencoder(12, 48, TopK(k=3))
    with pytest.raises(Stopped):
        sae.fit(x, SHORT, directory=tmp_path, progress=stop)
    kept = SparseAutoencoder.from_pretrained(tmp_path / "sae")
    torch.testing.assert_close(kept(x), sae.eval()(x))
    assert kept.score(x) > SparseAutoencoder(12, 48, TopK(k=3)).score(x)


def test_other_settings_are_refused_and_named(tmp_path):
    SparseAutoencoder(12, 48, TopK(k=3)).fit(data(), SHORT, directory=tmp_path)
    other = SAETraining(**{**vars(SHORT), "learning_rate": 1e-2})
    with pytest.raises(CheckpointError, match=r"learning_rate: 0\.003 there, 0\.01 here"):
        SparseAutoencoder(12, 48, TopK(k=3)).fit(data(), other, directory=tmp_path)
    with pytest.raises(CheckpointError, match=r"activation: TopK\(k=3\) there, TopK\(k=2\) here"):
        SparseAutoencoder(12, 48, TopK(k=2)).fit(data(), SHORT, directory=tmp_path)
    with pytest.raises(CheckpointError, match="store: "):
        SparseAutoencoder(12, 48, TopK(k=3)).fit(data(seed=8), SHORT, directory=tmp_path)


def test_a_damaged_checkpoint_is_said(tmp_path):
    (tmp_path / "training.pt").write_bytes(b"half of a")
    with pytest.raises(CheckpointError, match=r"is damaged .* remove it to start anew"):
        SparseAutoencoder(12, 48, TopK(k=3)).fit(data(), SHORT, directory=tmp_path)


def fit_and_die(directory, writes):
    """Trains in a child process that kills itself at a write to disk; returns how it ended."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    usual, done = os.fsync, 0

    def fsync(handle):
        nonlocal done
        if done == writes:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        usual(handle)

    os.fsync = fsync
    try:
        SparseAutoencoder(12, 48, MutualChoice(k=3)).fit(data(), SHORT, directory=directory)
    finally:
        os._exit(7)


@pytest.mark.parametrize("writes", [0, 1, 2])
def test_killed_while_it_writes_and_taken_up(tmp_path, writes):
    assert fit_and_die(tmp_path, writes) == -signal.SIGKILL
    whole = SparseAutoencoder(12, 48, MutualChoice(k=3)).fit(data(), SHORT)
    resumed = SparseAutoencoder(12, 48, MutualChoice(k=3)).fit(data(), SHORT, directory=tmp_path)
    assert resumed.report.resumed_from == writes * SHORT.checkpoint_every
    assert_same(weights(resumed), weights(whole))


def test_a_training_that_diverges_stops_and_keeps_its_checkpoint(tmp_path, monkeypatch):
    x, sae = data(), SparseAutoencoder(12, 48, TopK(k=3))
    usual = Trainer._objective

    def spoiled(self, batch, number):
        found = usual(self, batch, number)
        if number == 3:
            found.parts["reconstruction"] = found.parts["reconstruction"] * float("nan")
        return found

    monkeypatch.setattr(Trainer, "_objective", spoiled)
    with pytest.raises(NonFinite, match=r"diverged in step 4 of 6.*smaller learning_rate"):
        sae.fit(x, SHORT, directory=tmp_path)
    kept = SparseAutoencoder.from_pretrained(tmp_path / "sae")
    assert kept.score(x) > -1
    assert all(bool(torch.isfinite(value).all()) for value in weights(sae).values())
    monkeypatch.undo()
    sae.fit(x, SHORT, directory=tmp_path)
    assert sae.report.resumed_from == 2


def test_bad_data_is_refused_before_the_first_step():
    sae = SparseAutoencoder(12, 48, TopK(k=3))
    bad = data()
    bad[3, 2] = float("nan")
    with pytest.raises(NonFinite):
        sae.fit(bad, SHORT)
    with pytest.raises(InvalidValue, match="floating"):
        sae.fit(data().long(), SHORT)
    with pytest.raises(InvalidValue, match=r"reads 12 entries .* the store has 6"):
        sae.fit(data()[:, :6], SHORT)
    with pytest.raises(InvalidValue, match="batch=1000 exceeds"):
        sae.fit(data(), SAETraining(steps=1, batch=1000))
    with pytest.raises(InvalidValue, match="a list cannot be trained on"):
        sae.fit([1.0, 2.0], SHORT)
    with pytest.raises(MissingStatistic, match="gradients=True"):
        SparseAutoencoder(12, 48, GradientTopK(k=3)).fit(data(), SHORT)
    with pytest.raises(InvalidValue, match=r"call \.float\(\) first"):
        SparseAutoencoder(12, 48, TopK(k=3)).bfloat16().fit(data(), SHORT)


def test_without_held_out_rows_the_report_says_so():
    training = SAETraining(**{**vars(SHORT), "held_out": 0.0})
    report = SparseAutoencoder(12, 48, TopK(k=3)).fit(data(), training).report
    assert (report.measured_on, report.measured_rows) == ("training rows", 400)


def test_the_bfloat16_product_gives_nearly_the_same_dictionary():
    training = {"steps": 100, "batch": 128, "learning_rate": 5e-3}
    one, other = (
        SparseAutoencoder(12, 48, TopK(k=3))
        .fit(data(2000), SAETraining(**training, precision=precision))
        .report.fvu
        for precision in ("float32", "bfloat16")
    )
    assert other == pytest.approx(one, rel=0.1)
    assert other != one


def test_it_trains_where_gradients_are_switched_off_and_says_where_there_are_none():
    with torch.no_grad():
        sae = SparseAutoencoder(12, 48, TopK(k=3)).fit(data(), SHORT)
    assert_same(weights(sae), weights(SparseAutoencoder(12, 48, TopK(k=3)).fit(data(), SHORT)))
    with torch.inference_mode(), pytest.raises(InvalidValue, match="call fit outside of it"):
        SparseAutoencoder(12, 48, TopK(k=3)).fit(data(), SHORT)


def test_how_it_was_trained_is_kept_in_the_file(tmp_path):
    sae = SparseAutoencoder(12, 48, TopK(k=3)).fit(data(), SHORT)
    sae.save_pretrained(tmp_path / "sae")
    kept = SparseAutoencoder.from_pretrained(tmp_path / "sae").info["training"]
    assert kept["steps"] == 6
    assert kept["fvu"] == sae.report.fvu
    assert kept["learning_rate"] == 3e-3
    assert "history" not in kept
