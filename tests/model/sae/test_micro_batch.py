"""A batch that is worked on in pieces gives the step of the whole batch."""

import pytest
import torch

from sparsecraft.core.errors import InvalidValue
from sparsecraft.core.seeds import generator
from sparsecraft.methods.codes.abstopk import AbsTopK
from sparsecraft.methods.codes.feature_choice import FeatureChoice
from sparsecraft.methods.codes.gated import Gated
from sparsecraft.methods.codes.gradient_topk import GradientTopK
from sparsecraft.methods.codes.group_bias_adaptation import GroupBiasAdaptation
from sparsecraft.methods.codes.jumprelu import JumpReLU
from sparsecraft.methods.codes.mutual_choice import MutualChoice
from sparsecraft.methods.codes.relu import ReLU
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.activation_store import ActivationBatch, ActivationStore
from sparsecraft.model.sae import AuxK, Resampling, SAETraining, SparseAutoencoder
from sparsecraft.model.sae.trainer import Trainer

ROWS = 50
PLAN = {
    "steps": 3, "batch": ROWS, "learning_rate": 1e-2, "warm_up": 0, "decay": 0.0,
    "dead_after": 2 * ROWS, "auxiliary": AuxK(normalise="none", coefficient=0.5),
}  # fmt: skip
ACTIVATIONS = [
    ReLU(l1=0.1),
    Gated(l1=0.1),
    JumpReLU(l0=0.1, bandwidth=0.5),
    TopK(k=2),
    AbsTopK(k=2),
    GradientTopK(k=2, normalize_grad=False, attribution=0.1, unexplained=0.1),
    GroupBiasAdaptation(groups=2, buffer=100, high=0.3, low=0.1),
]


def rows(seed=1):
    return torch.randn(ROWS, 6, generator=generator(seed, "rows"))


def stepped(activation, micro_batch, **changes):
    """Returns a trainer after three steps on other rows each, half of its latents being dead."""
    form = {"tied": True, "row_norm": "unit"} if activation.moves_bias else {"prefixes": (5, 12)}
    sae = SparseAutoencoder(6, 12, activation, **form)
    with torch.no_grad():
        sae.b_enc[:6] = -30.0 if not activation.moves_bias else -1.0
    trainer = Trainer(sae, SAETraining(**{**PLAN, "micro_batch": micro_batch, **changes}))
    trainer.begin(ActivationStore.from_tensor(rows()))
    for number in range(3):
        x, gradient = rows(number), rows(10 + number) if activation.needs_gradient else None
        trainer.step(ActivationBatch(x, gradient, None, torch.arange(ROWS)))
    return trainer


def assert_close(one, other):
    for name, value in one.sae.state_dict().items():
        torch.testing.assert_close(other.sae.state_dict()[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda found: type(found).__name__)
@pytest.mark.parametrize("micro_batch", [ROWS, 25, 17], ids=str)
def test_the_steps_are_those_of_whole_batches(activation, micro_batch):
    whole, pieces = stepped(activation, None), stepped(activation, micro_batch)
    assert_close(whole, pieces)
    assert whole.counter.fired.tolist() == pieces.counter.fired.tolist()
    assert whole.counter.silent.tolist() == pieces.counter.silent.tolist()
    assert len(whole.history) == len(pieces.history) == 3
    for one, other in zip(whole.history, pieces.history, strict=True):
        assert other == pytest.approx(one, rel=1e-5)
    first = SparseAutoencoder(6, 12, activation, tied=activation.moves_bias).W_dec
    assert float((whole.sae.W_dec - first).detach().abs().max()) > 5e-3


def test_the_dead_latents_are_revived_by_pieces_too():
    assert "auxiliary" in stepped(TopK(k=2), 17).history[-1]


def test_latents_start_anew_from_all_rows_of_the_batch():
    resample = Resampling(every=3, until=1.0)
    whole, pieces = (stepped(ReLU(l1=0.1), each, resample=resample) for each in (None, 17))
    assert_close(whole, pieces)
    assert int(whole.dead().sum()) == 0


def test_no_more_rows_than_given_are_worked_on_at_once(monkeypatch):
    seen = []
    usual = Trainer._objective

    def watched(self, batch, number):
        seen.append(len(batch))
        return usual(self, batch, number)

    monkeypatch.setattr(Trainer, "_objective", watched)
    stepped(TopK(k=2), 20)
    assert seen == [20, 20, 10] * 3


def test_variances_of_auxk_are_those_of_the_pieces():
    """What the settings say of it: the same loss where all rows vary alike, else nearly."""
    changes = {"auxiliary": AuxK(coefficient=0.5)}
    whole, pieces = (stepped(TopK(k=2), each, **changes) for each in (None, 25))
    one, other = whole.history[-1]["auxiliary"], pieces.history[-1]["auxiliary"]
    assert other != one
    assert other == pytest.approx(one, rel=0.3)


@pytest.mark.parametrize("activation", [MutualChoice(k=2), FeatureChoice(k=2)], ids=repr)
def test_a_selection_over_the_batch_must_see_all_of_it(activation):
    x = torch.randn(100, 6, generator=generator(1, "rows"))
    sae = SparseAutoencoder(6, 12, activation)
    message = rf"micro_batch=16: {type(activation).__name__} selects over the batch.*all 32 rows"
    with pytest.raises(InvalidValue, match=message):
        sae.fit(x, SAETraining(steps=1, batch=32, micro_batch=16))
    assert sae.fit(x, SAETraining(steps=1, batch=32, micro_batch=32)).report.steps == 1


def test_a_number_of_rows_that_is_not_allowed():
    with pytest.raises(InvalidValue, match="micro_batch=0 is not allowed"):
        SAETraining(micro_batch=0)
