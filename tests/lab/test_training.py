"""The training loop: bit-equal after a kill, the same in accumulated halves, stopped before NaN."""

import importlib.util
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sparsecraft.core import catalog
from sparsecraft.core.errors import CheckpointError, InvalidValue, NonFinite, UnknownName
from sparsecraft.lab.training import TrainSettings, make_optimizer, starting_model, train_task
from sparsecraft.model.checkpoints import load
from sparsecraft.model.training_checkpoints import read_training

KILLED = Path(__file__).with_name("training_killed.py")
_spec = importlib.util.spec_from_file_location("training_killed", KILLED)
killed = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(killed)
Stripes, train = killed.Stripes, killed.train

SHORT = TrainSettings(steps=6, batch_size=16, learning_rate=5e-3)


def equal(first, second):
    mine, theirs = first.model.state_dict(), second.model.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


@pytest.mark.parametrize("name", ["dense", "rigl", "sr_ste"])
def test_a_killed_training_goes_on_bit_by_bit(tmp_path, name):
    whole = train(name)
    checkpoint = tmp_path / "training.pt"
    command = [sys.executable, KILLED, checkpoint, name, "13"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert read_training(checkpoint)["extra"]["step"] == 10
    steps = []
    resumed = train(name, checkpoint, progress=lambda step, total, loss: steps.append(step))
    assert steps == list(range(11, killed.STEPS + 1))
    assert equal(resumed, whole)
    assert resumed.losses == whole.losses
    if name != "dense":
        assert resumed.report.mask == whole.report.mask
        assert resumed.report.history == whole.report.history
        assert all(torch.equal(resumed.first_mask[n], m) for n, m in whole.first_mask.items())


def test_the_caller_keeps_its_random_state_and_the_seed_decides():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = train("rigl")
    assert torch.equal(torch.rand(1), expected)
    assert equal(train("rigl"), first)
    assert not equal(train("rigl", seed=1), first)


def test_a_method_is_finished_and_learns():
    trained = train("rigl")
    assert trained.report.sparsity == pytest.approx(0.5, abs=1e-3)
    trained.report.mask.verify(dict(trained.model.named_parameters()))
    assert not trained.model.training
    assert trained.losses[-1][1] < trained.losses[0][1]
    assert Stripes().evaluate(trained.model, "test").metric > 0.8
    assert trained.processes == 1
    assert trained.stored_bytes > 4 * 4 * sum(p.numel() for p in trained.model.parameters())


def test_half_batches_accumulated_are_the_whole_batch():
    class Plain(Stripes):
        def build(self):
            return torch.nn.Sequential(torch.nn.Flatten(), Linear(36, 2))

    class Linear(torch.nn.Linear):
        pass

    class Task(Plain):
        def outputs(self, model, batch):
            return model(batch["pixel_values"])

        def loss(self, model, batch):
            return torch.nn.functional.cross_entropy(model(batch["pixel_values"]), batch["labels"])

    whole = replace(SHORT, batch_size=32, steps=5)
    halves = replace(SHORT, batch_size=16, accumulate=2, steps=5)
    first = train_task(Task(), catalog.build("static", sparsity=0.5), whole)
    second = train_task(Task(), catalog.build("static", sparsity=0.5), halves)
    for name, value in first.model.state_dict().items():
        assert torch.allclose(value, second.model.state_dict()[name], atol=1e-6)
    assert [step for step, _ in second.losses] == [1, 2, 3, 4, 5]


class Breaking(Stripes):
    """Its loss is no number from the fourth batch on."""

    batches = 0

    def loss(self, model, batch):
        self.batches += 1
        return super().loss(model, batch) * (float("nan") if self.batches > 3 else 1.0)


@pytest.mark.parametrize("name", ["dense", "rigl"])
def test_a_loss_that_is_no_number_stops_with_the_state_before_it(tmp_path, name):
    checkpoint = tmp_path / "training.pt"
    method = killed.method_of(name)
    settings = replace(SHORT, steps=20)
    with pytest.raises(NonFinite, match=r"loss is nan at step 4 of 20\. .*training\.pt"):
        train_task(Breaking(), method, settings, checkpoint=checkpoint)
    kept = read_training(checkpoint)
    assert kept["extra"]["step"] == 3
    # The normalisation has not seen the batch of the step that never was.
    assert int(kept["model"]["layers.2.num_batches_tracked"]) == 3
    assert all(torch.isfinite(value).all() for value in kept["model"].values())
    # What is kept goes on, here with a loss that is mended, as if nothing had been.
    mended = train_task(Stripes(), method, settings, checkpoint=checkpoint)
    assert equal(mended, train_task(Stripes(), method, settings))


def test_a_gradient_that_is_no_number_stops_too(tmp_path):
    class Exploding(Stripes):
        def loss(self, model, batch):
            value = super().loss(model, batch)
            zero = next(model.parameters()).flatten()[0] * 0
            return value + zero.abs().sqrt()  # 0 with an infinite slope

    with pytest.raises(NonFinite, match="gradient is nan at step 1"):
        train_task(Exploding(), None, SHORT, checkpoint=tmp_path / "training.pt")


def test_a_checkpoint_of_another_training_is_refused(tmp_path):
    checkpoint = tmp_path / "training.pt"
    train_task(Stripes(), killed.method_of("rigl"), SHORT, checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match="another method"):
        train_task(Stripes(), killed.method_of("set"), SHORT, checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match="not that of this dense training"):
        train_task(Stripes(), None, SHORT, checkpoint=checkpoint)
    with pytest.raises(CheckpointError, match="another total steps"):
        train_task(
            Stripes(), killed.method_of("rigl"), replace(SHORT, steps=7), checkpoint=checkpoint
        )
    with pytest.raises(CheckpointError, match="checkpoint of a training"):
        load(checkpoint)


def test_a_checkpoint_of_more_processes_is_refused(tmp_path):
    checkpoint = tmp_path / "training.pt"
    train_task(Stripes(), None, SHORT, checkpoint=checkpoint)
    content = read_training(checkpoint)
    content["extra"]["processes"] = 2
    torch.save(content, checkpoint)
    with pytest.raises(CheckpointError, match="training in 2 processes"):
        train_task(Stripes(), None, SHORT, checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": 5, "batch_size": 0}, "batch_size=0"),
        ({"steps": 5, "accumulate": True}, "accumulate=True"),
        ({"steps": 5, "learning_rate": -1.0}, "learning_rate=-1"),
        ({"steps": 5, "clip": float("nan")}, "clip=nan"),
        ({"steps": 5, "weight_decay": -0.1}, "weight_decay=-0.1"),
    ],
)
def test_settings_are_checked(options, words):
    with pytest.raises(InvalidValue, match=words):
        TrainSettings(**options)


def test_names_are_checked():
    with pytest.raises(UnknownName, match=r"Unknown optimiser 'adam'. Did you mean 'adam"):
        TrainSettings(steps=5, optimizer="adam")
    with pytest.raises(UnknownName, match="Unknown start 'fresh'"):
        TrainSettings(steps=5, start="fresh")


def test_the_wrong_optimiser_is_named_before_any_step(tmp_path):
    method = catalog.build("cast", sparsity=0.5)
    with pytest.raises(InvalidValue, match="cast needs the optimiser AdamS, not AdamW"):
        train_task(Stripes(), method, SHORT, checkpoint=tmp_path / "training.pt")
    assert list(tmp_path.iterdir()) == []


def test_decay_is_on_matrices_only_and_the_rate_is_the_optimisers_own():
    model = killed.Net()
    for name, rate in (("sgd", 0.05), ("adamw", 2e-3), ("adams", 2e-3)):
        settings = TrainSettings(steps=1, optimizer=name, weight_decay=0.3)
        matrices, others = make_optimizer(model, settings).param_groups
        assert (matrices["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
        assert all(p.dim() > 1 for p in matrices["params"])
        assert matrices["lr"] == settings.peak == rate


def test_a_task_without_a_fresh_model_says_what_to_do():
    class Only:
        name = "only"

    with pytest.raises(InvalidValue, match=r"only has no untrained model .*--from-trained"):
        starting_model(Only(), "scratch", 0)


@pytest.mark.slow
def test_two_processes_agree_with_one_that_takes_the_same_batches(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(
        "import sys, torch\n"
        f"sys.path.insert(0, {str(KILLED.parent)!r})\n"
        "torch.set_num_threads(1)\n"
        "import training_killed as t\n"
        "from sparsecraft.lab.training import TrainSettings, train_task\n"
        "settings = TrainSettings(steps=6, batch_size=16, learning_rate=5e-3)\n"
        "class Task(t.Stripes):\n"
        "    def build(self):\n"
        "        net = t.Net()\n"
        "        net.layers[2] = torch.nn.Identity()\n"
        "        net.layers[4] = torch.nn.Identity()\n"
        "        return net\n"
        "found = train_task(Task(), t.method_of('rigl'), settings, checkpoint=None)\n"
        "import torch.distributed as dist\n"
        "rank = dist.get_rank() if dist.is_initialized() else 0\n"
        "facts = {'processes': found.processes, 'state': found.model.state_dict()}\n"
        "torch.save(facts, f'{sys.argv[1]}-{rank}.pt')\n"
    )
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--master_port", "29731", str(script), str(tmp_path / "two")]
    done = subprocess.run(launch, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [torch.load(tmp_path / f"two-{rank}.pt") for rank in (0, 1)]
    assert [each["processes"] for each in ranks] == [2, 2]
    first, second = (each["state"] for each in ranks)
    assert all(torch.equal(first[name], second[name]) for name in first)

    class Task(Stripes):
        def build(self):
            net = killed.Net()
            net.layers[2] = net.layers[4] = torch.nn.Identity()
            return net

    alone = train_task(Task(), killed.method_of("rigl"), replace(SHORT, accumulate=2))
    for name, value in alone.model.state_dict().items():
        assert torch.allclose(value, first[name], atol=1e-5), name
