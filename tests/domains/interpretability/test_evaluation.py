"""`evaluate`: figures by hand, behaviour of decoders and encoders, and what is refused."""

import json
import math

import pytest
import torch
from tests import models
from torch import nn

from sparsecraft import SparseAutoencoder, evaluate
from sparsecraft.core.code import Code
from sparsecraft.core.errors import InvalidValue, NonFinite, UnknownName
from sparsecraft.domains.interpretability import latent_statistics
from sparsecraft.domains.interpretability.behaviour import Recovered
from sparsecraft.domains.interpretability.latent_statistics import LatentStatistics, alikeness
from sparsecraft.domains.interpretability.model_answers import answer
from sparsecraft.methods.codes.abstopk import AbsTopK
from sparsecraft.methods.codes.gradient_topk import GradientTopK
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.activation_store import ActivationStore
from sparsecraft.model.sae import SAETraining


def rows(count=300, width=8, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)) + 1


class Predicts(SparseAutoencoder):
    """Reconstructs every row as a fixed one."""

    def __init__(self, vector):
        super().__init__(len(vector), 16, TopK(k=2))
        with torch.no_grad():
            self.W_dec.zero_()
            self.b_dec.copy_(vector)


class Identity(SparseAutoencoder):
    """Reconstructs every row exactly, by one latent for each sign of each entry."""

    def __init__(self, width):
        super().__init__(width, 2 * width, TopK(k=2 * width), subtract_bias=False)
        both = torch.cat([torch.eye(width), -torch.eye(width)])
        with torch.no_grad():
            self.W_dec.copy_(both)
            self.W_enc.copy_(both.T)


def test_predicting_the_mean_explains_nothing():
    x = rows()
    found = evaluate(Predicts(x.mean(0)), x)
    assert found.fvu == pytest.approx(1, abs=1e-6)
    assert found.explained_variance == pytest.approx(0, abs=1e-6)


def test_predicting_zero_is_worse_than_the_mean_and_is_said():
    found = evaluate(Predicts(torch.zeros(8)), rows())
    assert found.fvu > 1.5
    assert any("worse than the mean" in note for note in found.notes)


def test_everything_explained():
    found = evaluate(Identity(8), rows())
    assert found.fvu == pytest.approx(0, abs=1e-10)
    assert (found.cosine, found.shrinkage, found.norm_ratio) == pytest.approx((1, 1, 1))
    assert found.l0 == 8 and found.l1 == pytest.approx(float(rows().abs().sum(1).mean()))


def test_codes_of_both_signs_count():
    sae = SparseAutoencoder(8, 32, AbsTopK(k=5)).eval()
    x = rows()
    codes = sae.encode(x).detach()
    found = evaluate(sae, x, batch=64)
    assert found.l0 == 5 and bool((codes < 0).any())
    assert found.l1 == pytest.approx(float(codes.abs().sum(1).mean()))
    assert found.alive == float((codes != 0).any(0).double().mean())
    density = (codes != 0).double().mean(0)
    assert found.denser_than_10_percent == float((density > 0.1).double().mean())
    assert sum(found.densities["latents"]) == found.alive * 32


def test_decoder_rows_need_no_unit_norm():
    sae = SparseAutoencoder(8, 32, TopK(k=5))
    with torch.no_grad():
        sae.W_dec.mul_(3.0)
    found = evaluate(sae, rows())
    assert found.decoder_norms == pytest.approx((3, 3))
    assert 0 < found.decoder.mean <= found.decoder.largest <= 1


def test_alikeness_by_hand_and_of_many():
    assert alikeness(torch.tensor([[1.0, 0], [0, 2], [-3, 0]])).largest == pytest.approx(1)
    assert alikeness(torch.tensor([[1.0, 0], [0, 2], [-3, 0]])).mean == pytest.approx(2 / 3)


def test_all_directions_are_looked_at_and_of_very_many_some(monkeypatch):
    vectors = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T).abs().fill_diagonal_(0).amax(1)
    found = alikeness(vectors)
    assert (found.latents, found.among) == (600, 600)
    assert found.mean == pytest.approx(float(cosines.mean()), abs=1e-6)
    assert found.largest == pytest.approx(float(cosines.max()), abs=1e-6)
    monkeypatch.setattr(latent_statistics, "ALL_COMPARED", 599)
    monkeypatch.setattr(latent_statistics, "DRAWN", 50)
    some = alikeness(vectors, seed=1)
    assert (some.latents, some.among) == (50, 600)
    assert some.largest <= found.largest
    sae = SparseAutoencoder(8, 600, TopK(k=5))
    shown = {name: text for name, _, text in evaluate(sae, rows()).rows()}
    assert "mean of 50 drawn from 600" in shown["decoder alikeness"]


def test_contexts_are_counted_once_across_batches():
    codes = torch.tensor([[1.0, 0], [1, 0], [0, 2], [1, 2], [0, 0], [3, 0]])
    contexts = torch.tensor([0, 0, 0, 0, 0, 1])
    for size in (1, 2, 4, 6):
        found = LatentStatistics(2)
        for part, where in zip(codes.split(size), contexts.split(size), strict=True):
            found.add(Code.of(part), where)
        assert found.contexts.tolist() == [2, 1]
        assert found.fired.tolist() == [4, 2]
        assert found.in_a_row() == 2.0
    assert LatentStatistics(2).in_a_row() is None


def test_table_and_json_are_whole():
    found = evaluate(SparseAutoencoder(8, 32, TopK(k=5)), torch.ones(20, 8))
    assert math.isnan(found.fvu) and any("no variance" in note for note in found.notes)
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["fvu"] is None and plain["latents"] == 32 and plain["behaviour"] is None
    assert all(len(row) == 3 for row in found.rows())
    assert "20 tokens" in {name: what for name, _, what in found.rows()}["alive"]


def test_the_mode_is_left_as_it_was():
    sae = SparseAutoencoder(8, 32, TopK(k=5)).train()
    evaluate(sae, rows())
    assert sae.training


def test_errors():
    sae = SparseAutoencoder(8, 32, TopK(k=5))
    with pytest.raises(InvalidValue, match="another hook point"):
        evaluate(sae, ActivationStore.from_tensor(rows(width=4)))
    with pytest.raises(NonFinite, match="NaN"):
        evaluate(sae, rows() * float("nan"))
    with pytest.raises(InvalidValue, match="no activations were given"):
        evaluate(sae)
    with pytest.raises(InvalidValue, match="both a store and texts"):
        evaluate(sae, rows(), texts=["a"])
    with pytest.raises(InvalidValue, match=r"type torch\.int64"):
        evaluate(sae, torch.ones(4, 8, dtype=torch.int64))


class Tokens:
    """Token ids of a store, for a model without a tokenizer."""

    ids = torch.randint(3, models.VOCAB, (12, 16), generator=torch.Generator().manual_seed(0))


def store_of(model, at):
    return ActivationStore(model, at=at, tokens=Tokens.ids, skip_special=False, context=16)


def test_a_decoder_loses_nothing_by_perfect_reconstructions():
    model = models.tiny_llama()
    store = store_of(model, "model.layers.0")
    found = evaluate(Identity(models.WIDTH), store, model).behaviour
    assert found.kind == "next token" and found.contexts == 12
    assert found.loss.reconstructed == pytest.approx(found.loss.clean, abs=1e-4)
    assert found.divergence.clean == 0 and found.divergence.over_zero == pytest.approx(1, abs=1e-3)
    logits = model(Tokens.ids).logits[:, :-1].flatten(0, 1)
    loss = nn.functional.cross_entropy(logits.detach(), Tokens.ids[:, 1:].flatten())
    assert found.loss.clean == pytest.approx(float(loss), rel=1e-5)


def test_the_mean_recovers_nothing_over_the_mean():
    model = models.tiny_llama()
    store = store_of(model, "model.layers.0")
    mean = torch.cat([part.x for part in store.batches()]).mean(0)
    found = evaluate(Predicts(mean), store, model)
    assert found.behaviour.divergence.over_mean == pytest.approx(0, abs=1e-4)
    names = [name for name, _, _ in found.rows()]
    assert "loss recovered" in names and "KL over the mean" in names
    assert json.dumps(found.to_json(), allow_nan=False)


def test_an_encoder_is_compared_by_similarities():
    model = models.tiny_bert().base_model
    store = store_of(model, "encoder.layer.0")
    exact = evaluate(Identity(models.WIDTH), store, model).behaviour
    assert exact.kind == "similarity" and exact.loss is None
    assert exact.divergence.reconstructed == pytest.approx(0, abs=1e-6)
    zero = evaluate(Predicts(torch.zeros(models.WIDTH)), store, model).behaviour
    assert zero.divergence.over_zero == pytest.approx(0, abs=1e-6)
    assert zero.divergence.zero > 0


def masked_language_model():
    from transformers import BertForMaskedLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertForMaskedLM(models.tiny_bert().config).eval()


def test_a_masked_language_model_is_judged_as_an_encoder():
    model = masked_language_model()
    store = store_of(model, "encoder.layer.0")
    found = evaluate(Identity(models.WIDTH), store, model)
    assert found.behaviour.kind == "similarity" and found.behaviour.loss is None
    assert any("BertForMaskedLM see the tokens behind them" in note for note in found.notes)
    encoder = evaluate(Identity(models.WIDTH), store, model.bert).behaviour
    assert found.behaviour.divergence.zero == pytest.approx(encoder.divergence.zero)
    assert encoder.divergence.zero > 0 and encoder.remark is None
    asked = evaluate(Identity(models.WIDTH), store, model, behaves="next token")
    assert asked.behaviour.kind == "next token"


def test_a_hook_in_the_head_of_a_masked_language_model_is_refused():
    model = masked_language_model()
    store = store_of(model, "cls.predictions.transform")
    with pytest.raises(InvalidValue, match="is in the head of BertForMaskedLM"):
        evaluate(Identity(models.WIDTH), store, model)


def test_causal_models_can_be_compared_by_similarities_too():
    model = models.tiny_llama()
    store = store_of(model, "model.layers.0")
    found = evaluate(Identity(models.WIDTH), store, model, behaves="similarity").behaviour
    assert found.kind == "similarity" and found.remark is None
    assert found.divergence.reconstructed == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "opt", "gpt-neox", "mixtral"])
def test_causal_models_are_told_from_others(name):
    model = models.ARCHITECTURES[name]()
    found = evaluate(Identity(models.WIDTH), store_of(model, "blocks.1.hook_resid_post"), model)
    assert found.behaviour.kind == "next token" and found.behaviour.remark is None


def test_data_goes_to_where_the_weights_are():
    # The meta device has no numbers, but tells a tensor that was left behind.
    sae = SparseAutoencoder(8, 32, TopK(k=5)).to("meta")
    assert sae.check_input(rows()).device.type == "meta"
    assert Code.of(torch.eye(3)).to("meta").values.device.type == "meta"
    assert answer(models.tiny_llama().to("meta"), Tokens.ids).logits.device.type == "meta"


def test_only_tokens_of_the_store_are_replaced():
    model = models.tiny_llama()
    whole = store_of(model, "model.layers.0")
    special = sorted(set(Tokens.ids[:, 3].tolist()))
    part = ActivationStore(
        model, at="model.layers.0", tokens=Tokens.ids, skip_special=special, context=16
    )
    found = [evaluate(Identity(models.WIDTH), each, model).behaviour for each in (whole, part)]
    assert found[0].tokens == 12 * 16
    assert found[1].tokens == int((~torch.isin(Tokens.ids, torch.tensor(special))).sum())


def test_what_cannot_be_run_is_said():
    model = models.tiny_llama()
    found = evaluate(SparseAutoencoder(8, 32, TopK(k=5)), rows(), model)
    assert found.behaviour is None and any("no text" in note for note in found.notes)
    with pytest.raises(UnknownName, match="kind of behaviour"):
        evaluate(
            Identity(models.WIDTH), store_of(model, "model.layers.0"), model, behaves="reading"
        )


def test_it_is_said_whether_gradients_chose_the_latents():
    sae, x = SparseAutoencoder(8, 32, GradientTopK(k=5)), rows()
    with_gradients = ActivationStore.from_tensor(x, gradient=rows(seed=1))
    assert any("with the store's gradients" in note for note in evaluate(sae, with_gradients).notes)
    assert any("without gradients;" in note for note in evaluate(sae, x).notes)


def test_a_transcoder_is_measured_on_what_it_reconstructs():
    sae, x = SparseAutoencoder(8, 32, TopK(k=5), d_out=4), rows()
    with torch.no_grad():
        sae.W_dec.zero_()
        target = rows(width=4, seed=2)
        sae.b_dec.copy_(target.mean(0))
    found = evaluate(sae, ActivationStore.from_tensor(x, target=target), models.tiny_llama())
    assert found.fvu == pytest.approx(1, abs=1e-5) and found.behaviour is None
    assert any("transcoder" in note for note in found.notes)


def test_a_transcoder_of_equal_widths_is_not_put_into_the_place_that_it_reads():
    model = models.tiny_llama()
    store = ActivationStore(
        model, at="model.layers.0.mlp.input", to="model.layers.0.mlp", tokens=Tokens.ids,
        skip_special=False, context=16,
    )  # fmt: skip
    sae = SparseAutoencoder(models.WIDTH, 64, TopK(k=5), transcoder=True)
    with pytest.raises(InvalidValue, match="give a store with targets"):
        evaluate(sae, store_of(model, "model.layers.0.mlp.input"), model)
    found = evaluate(sae, store, model)
    assert found.behaviour is None and any("transcoder" in note for note in found.notes)


def test_shares_recovered_by_hand():
    found = Recovered(clean=1.0, reconstructed=1.5, zero=3.0, mean=2.0)
    assert (found.over_zero, found.over_mean) == (0.75, 0.5)
    assert math.isnan(Recovered(1.0, 1.0, 1.0, 1.0).over_zero)


def test_a_loaded_autoencoder_knows_the_scale_of_its_activations(tmp_path):
    x = 5 * torch.randn(600, 8, generator=torch.manual_seed(0))
    sae = SparseAutoencoder(8, 16, TopK(k=4)).fit(x, SAETraining(steps=20, batch=64))
    sae.save_pretrained(tmp_path / "sae")
    again = SparseAutoencoder.from_pretrained(tmp_path / "sae")
    assert not any("mean norm" in note for note in evaluate(again, x).notes)
    assert any("mean norm" in note for note in evaluate(again, x / 5).notes)
