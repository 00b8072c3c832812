"""A Sparsifier in the Hugging Face Trainer: trains, accumulates, resumes and saves as promised."""

import dataclasses
import shutil

import pytest
import torch
from tests.model.test_sparsifier import Held, Regrown, Scaled, Taught, described
from tests.models import tiny_llama
from torch import nn
from transformers import Trainer, TrainingArguments

import sparsecraft
from sparsecraft import SparsifierCallback
from sparsecraft.core.errors import CheckpointError, InvalidValue
from sparsecraft.core.kinds import InTraining
from sparsecraft.model.checkpoints import save
from sparsecraft.model.trainer_callback import STATE


@described
@dataclasses.dataclass(frozen=True, kw_only=True)
class Plus(InTraining):
    """Adds three to the loss."""

    masked_weights = "live"

    def loss(self, captured, weights, clock):
        return sum(w.sum() for w in weights.values()) * 0 + 3.0


class Texts(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        draw = torch.Generator().manual_seed(index)
        ids = torch.randint(3, 60, (10,), generator=draw)
        return {"input_ids": ids, "labels": ids}


def trainer(folder, callback, model=None, **changes):
    settings = {
        "output_dir": str(folder),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "save_strategy": "steps",
        "save_steps": 3,
        "logging_steps": 1,
        "report_to": [],
        "disable_tqdm": True,
        "learning_rate": 1e-2,
        "use_cpu": True,
        **changes,
    }
    model = tiny_llama() if model is None else model
    evaluated = settings.pop("eval_dataset", None)
    arguments = TrainingArguments(**settings)
    return Trainer(
        model, arguments, train_dataset=Texts(), eval_dataset=evaluated, callbacks=[callback]
    )


@pytest.mark.parametrize(
    "method", [Regrown(sparsity=0.5), Scaled(), Taught()], ids=["frozen", "live", "taught"]
)
def test_a_training_resumed_from_its_checkpoint_equals_the_uninterrupted_one(method, tmp_path):
    first = SparsifierCallback(method)
    whole = trainer(tmp_path / "a", first)
    whole.train()
    assert (tmp_path / "a" / "checkpoint-3" / STATE).is_file()
    shutil.rmtree(tmp_path / "a" / "checkpoint-6")
    second = SparsifierCallback(method)
    again = trainer(tmp_path / "a", second)
    again.train(resume_from_checkpoint=True)
    for key, value in again.model.state_dict().items():
        assert torch.equal(value, whole.model.state_dict()[key]), key
    assert second.report.mask == first.report.mask
    assert second.report.steps == (6, 6)


def test_the_finished_model_is_sparse_and_loads_anywhere(tmp_path):
    callback = SparsifierCallback(Held(sparsity=0.75))
    run = trainer(tmp_path / "run", callback)
    run.train()
    assert callback.report.sparsity == pytest.approx(0.75, abs=1e-3)
    save(run.model, tmp_path / "out", mask=callback.report.mask)
    loaded = sparsecraft.load(tmp_path / "out")
    callback.report.mask.verify(dict(loaded.named_parameters()))
    with pytest.raises(CheckpointError, match="in the middle of a sparse training"):
        sparsecraft.load(tmp_path / "run" / "checkpoint-3")


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_methods_loss_is_added_once_for_each_step(accumulation, tmp_path):
    losses = []
    for method in (Held(sparsity=0.0), Plus()):
        run = trainer(
            tmp_path / method.info.name,
            SparsifierCallback(method),
            max_steps=1,
            gradient_accumulation_steps=accumulation,
            per_device_train_batch_size=4 // accumulation,
            save_strategy="no",
        )
        run.train()
        losses.append(next(log["loss"] for log in run.state.log_history if "loss" in log))
    assert losses[1] - losses[0] == pytest.approx(3.0, abs=1e-3)


def test_accumulated_batches_count_as_one_step(tmp_path):
    callback = SparsifierCallback(Regrown(sparsity=0.5))
    run = trainer(
        tmp_path,
        callback,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        max_steps=4,
    )
    run.train()
    assert callback.report.steps == (4, 4)
    assert [e.step for e in callback.report.history] == [0, 2]


def test_a_loss_formed_outside_the_model_is_an_error(tmp_path):
    run = trainer(tmp_path, SparsifierCallback(Plus()), label_smoothing_factor=0.1)
    with pytest.raises(InvalidValue, match="the model returned none"):
        run.train()


def test_a_checkpoint_without_the_callback_is_refused(tmp_path):
    run = trainer(tmp_path, SparsifierCallback(Held()))
    run.train()
    (tmp_path / "checkpoint-3" / STATE).unlink()
    shutil.rmtree(tmp_path / "checkpoint-6")
    again = trainer(tmp_path, SparsifierCallback(Held()))
    with pytest.raises(CheckpointError, match="Resume from an earlier checkpoint"):
        again.train(resume_from_checkpoint=True)


def test_the_best_model_cannot_be_asked_for(tmp_path):
    run = trainer(
        tmp_path,
        SparsifierCallback(Held()),
        load_best_model_at_end=True,
        eval_strategy="steps",
        eval_steps=3,
        eval_dataset=Texts(),
    )
    with pytest.raises(InvalidValue, match="load_best_model_at_end"):
        run.train()


def test_models_without_a_loss_of_their_own_can_add_it_themselves(tmp_path):
    class Own(Trainer):
        def compute_loss(self, model, inputs, **_):
            out = model(input_ids=inputs["input_ids"])
            return out.logits.square().mean() + callback.loss()

    callback = SparsifierCallback(Plus())
    run = Own(
        tiny_llama(),
        TrainingArguments(
            output_dir=str(tmp_path), max_steps=1, report_to=[], use_cpu=True, disable_tqdm=True
        ),
        train_dataset=Texts(),
        callbacks=[callback],
    )
    run.train()
    assert callback.report.steps == (1, 1)
    assert isinstance(callback.report.model, nn.Module)
