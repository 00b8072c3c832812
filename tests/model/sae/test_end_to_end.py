"""Training inside the model: its predictions are kept better, and the model is left as it was."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from tests.models import tiny_bert, tiny_gpt2, tiny_llama
from torch import nn

from sparsecraft.core.errors import InvalidValue, NonFinite, UnknownName
from sparsecraft.methods.codes.mutual_choice import MutualChoice
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.activation_store import ActivationStore
from sparsecraft.model.sae import (
    EndToEndTraining,
    SAETraining,
    SparseAutoencoder,
    end_to_end,
    fine_tune,
)

AT, WIDTH = "blocks.0.hook_resid_post", 32
TOKENS = torch.randint(3, 64, (24, 10), generator=torch.Generator().manual_seed(0))
SPECIAL = [3, 4, 5]
TRAINING = EndToEndTraining(steps=40, batch=6, learning_rate=3e-3, held_out=0.25)


def store_of(model, **options):
    return ActivationStore(
        model, **{"at": AT, "tokens": TOKENS, "skip_special": SPECIAL, **options}
    )


def trained(store, **options):
    activation = options.pop("activation", TopK(k=3))
    sae = SparseAutoencoder(store.d_in, 64, activation, **options)
    return sae.fit(store, SAETraining(steps=60, batch=64, learning_rate=3e-3))


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
@pytest.mark.parametrize("loss", ["kl", "ce"])
def test_the_loss_falls_and_the_model_is_left_as_it_was(make, loss):
    model = make().train()
    model.lm_head.weight.requires_grad_(False)
    store = store_of(model)
    sae = trained(store)
    before = copy.deepcopy(model.state_dict())
    training = EndToEndTraining(steps=40, batch=6, learning_rate=3e-3, held_out=0.0, loss=loss)
    report = fine_tune(sae, model, store, training)
    if loss == "kl":
        assert report.after.divergence < 0.8 * report.before.divergence
    else:
        assert report.after.loss < report.before.loss
    assert report.after.clean == report.before.clean
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and not model.lm_head.weight.requires_grad
    assert model.get_input_embeddings().weight.grad is None
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == 0
    assert sae.report is not None and not sae.training


def test_the_report_is_what_the_splice_does():
    model = tiny_llama().eval()
    store = store_of(model)
    sae = trained(store)
    report = fine_tune(sae, model, store, TRAINING)
    _, held_out = store.split(TRAINING.held_out, TRAINING.seed)
    tokens = held_out.tokens.long()
    counted = ~torch.isin(tokens, torch.tensor(SPECIAL))[:, :-1]
    with torch.no_grad():
        clean = model(tokens).logits[:, :-1][counted].log_softmax(-1)
        with sae.spliced(model, at=AT, leave_alone=SPECIAL):
            found = model(tokens).logits[:, :-1][counted].log_softmax(-1)
    divergence = (clean.exp() * (clean - found)).sum(1).mean()
    assert report.after.divergence == pytest.approx(divergence.item(), rel=1e-4)
    loss = F.nll_loss(found, tokens[:, 1:][counted])
    assert report.after.loss == pytest.approx(loss.item(), rel=1e-5)
    after = report.after
    assert after.recovered == pytest.approx(
        (after.ablated - after.loss) / (after.ablated - after.clean)
    )
    assert report.measured_on == "held-out contexts" and report.contexts == 6
    assert "KL" in str(report) and "loss recovered" in str(report)
    assert json.loads(json.dumps(sae.info["end_to_end"]))["steps"] == 40


def test_the_gradient_is_that_of_the_model_with_the_reconstruction_in_it():
    model, seen = tiny_llama().eval(), []
    store = store_of(model, skip_special=[])
    sae = trained(store)
    inside = end_to_end._Inside(sae, model, store, TRAINING)
    inside.trainer.begin(store)
    with end_to_end.frozen(model):
        texts = end_to_end.Contexts.of(store).take(torch.arange(4), torch.device("cpu"))
        inside._losses(texts)["kl"].backward()
    scale = inside.trainer.scaling

    def edit(module, args, output):
        y = output[0] if isinstance(output, tuple) else output
        seen.append(sae(y * scale.inputs) / scale.targets)
        return (seen[-1], *output[1:]) if isinstance(output, tuple) else seen[-1]

    clean = model(texts.tokens).logits[:, :-1].log_softmax(-1).detach()
    with model.model.layers[0].register_forward_hook(edit):
        found = model(texts.tokens).logits[:, :-1].log_softmax(-1)
    kl = (clean.exp() * (clean - found)).sum(-1).mean()
    (wanted,) = torch.autograd.grad(kl, [sae.W_dec])
    torch.testing.assert_close(sae.W_dec.grad, wanted, atol=1e-6, rtol=1e-4)


def test_directions_keep_their_norm_and_the_squared_error_can_count():
    model = tiny_llama()
    store = store_of(model)
    sae = trained(store)
    norm = sae.W_dec.detach().norm(dim=1).mean()
    pure = copy.deepcopy(sae)
    options = {"steps": 40, "batch": 6, "learning_rate": 3e-3}
    both = fine_tune(sae, model, store, EndToEndTraining(reconstruction=20.0, **options))
    alone = fine_tune(pure, model, store, EndToEndTraining(**options))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), norm.expand(64), rtol=1e-3, atol=0)
    assert both.after.fvu < alone.after.fvu
    assert set(both.history[0]) == {"kl", "reconstruction"} and set(alone.history[0]) == {"kl"}
    assert len(both.history) == 40


def test_a_transcoder_writes_where_the_store_says():
    model = tiny_llama()
    store = store_of(model, at="model.layers.0.mlp.input", to="model.layers.0.mlp.output")
    sae = trained(store, transcoder=True)
    training = EndToEndTraining(
        steps=40, batch=6, learning_rate=3e-3, held_out=0.0, reconstruction=0.1
    )
    report = fine_tune(sae, model, store, training)
    assert report.after.divergence < report.before.divergence
    fraction = report.history[0]["reconstruction"] / 0.1
    assert 0.5 * report.before.fvu < fraction < 2 * report.before.fvu


def test_selections_over_a_batch_use_their_thresholds():
    model = tiny_llama()
    store = store_of(model)
    sae = trained(store, activation=MutualChoice(k=3))
    threshold = sae.own.state["threshold"].clone()
    report = fine_tune(sae, model, store, TRAINING)
    assert torch.equal(sae.own.state["threshold"], threshold)
    assert report.after.divergence < report.before.divergence


def test_padding_is_neither_replaced_nor_counted():
    model = tiny_llama()
    batches = []
    for tokens, length in ((TOKENS[:12], 10), (TOKENS[12:], 6)):
        there = torch.arange(10).expand(12, 10) < length
        batches.append({"input_ids": tokens, "attention_mask": there.long()})
    store = ActivationStore(model, at=AT, batches=batches, skip_special=[])
    texts = end_to_end.Contexts.of(store)
    assert int(texts.counted.sum()) == 12 * 9 + 12 * 5
    report = fine_tune(trained(store), model, store, TRAINING)
    assert report.after.divergence < report.before.divergence


def test_what_stops_it_leaves_an_autoencoder_of_raw_activations():
    model = tiny_llama()
    store = store_of(model)
    sae = trained(store)
    before = sae.score(store)

    def stop(stage, done, steps):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(sae, model, store, TRAINING, progress=stop)
    assert sae.score(store) == pytest.approx(before, abs=0.1)
    assert all(parameter.requires_grad for parameter in model.parameters())


class Broken(nn.Module):
    """Gives what is no prediction."""

    def __init__(self):
        super().__init__()
        self.model = tiny_llama()

    def forward(self, ids):
        return self.model.model(ids).last_hidden_state.mean(1)


def test_what_cannot_be_trained_is_refused():
    model = tiny_llama()
    store = store_of(model)
    sae = trained(store)
    bert = tiny_bert()
    with pytest.raises(InvalidValue, match="no token ids"):
        fine_tune(sae, model, ActivationStore.from_tensor(torch.randn(20, WIDTH)))
    with pytest.raises(InvalidValue, match="gives no logits for every token"):
        fine_tune(sae, Broken(), store)
    with pytest.raises(InvalidValue, match="gives no logits for every token"):
        fine_tune(sae, bert, store_of(bert, at="encoder.layer.0"))
    with pytest.raises(InvalidValue, match="reads 16 entries and reconstructs 16; the store"):
        fine_tune(SparseAutoencoder(16, 64, TopK(k=3)), model, store)
    with pytest.raises(InvalidValue, match="this is a transcoder"):
        fine_tune(SparseAutoencoder(WIDTH, 64, TopK(k=3), transcoder=True), model, store)
    with pytest.raises(InvalidValue, match="has one behind it"):
        fine_tune(sae, model, store_of(model, tokens=TOKENS[:, :1], skip_special=[]))
    with torch.inference_mode(), pytest.raises(InvalidValue, match="inference_mode"):
        fine_tune(sae, model, store)
    with pytest.raises(NonFinite, match=r"diverged in step 1 of 40.*smaller learning_rate"):
        fine_tune(sae, _with_nan(model), store, TRAINING)


def test_a_model_that_sees_ahead_is_refused():
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=16, initializer_range=0.5,
    )  # fmt: skip
    model = BertForMaskedLM(config)
    store = store_of(model, at="bert.encoder.layer.0")
    with pytest.raises(InvalidValue, match="see the tokens behind them"):
        fine_tune(SparseAutoencoder(32, 64, TopK(k=3)), model, store)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"loss": "mse"}, UnknownName, "loss"),
        ({"reconstruction": -1.0}, InvalidValue, r"reconstruction=-1\.0 is not allowed"),
        ({"steps": 0}, InvalidValue, "steps=0 is not allowed"),
        ({"batch": 0}, InvalidValue, "batch=0 is not allowed"),
        ({"learning_rate": 0.0}, InvalidValue, r"learning_rate=0\.0 is not allowed"),
    ],
)
def test_settings_that_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        EndToEndTraining(**options)


def _with_nan(model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    return other
