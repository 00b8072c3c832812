"""The survey of a store and the page made of it, with a small real model."""

import json
import re

import pytest
import torch
from tests.models import VOCAB, Blocks, tiny_llama

from sparsecraft.core.errors import InvalidValue
from sparsecraft.domains.interpretability.browse import browse
from sparsecraft.domains.interpretability.browse.survey import BINS, survey
from sparsecraft.domains.interpretability.browse.windows import Vocabulary, windows
from sparsecraft.methods.codes.abstopk import AbsTopK
from sparsecraft.methods.codes.gradient_topk import GradientTopK
from sparsecraft.model.activation_store import ActivationStore
from sparsecraft.model.sae import SparseAutoencoder

CONTEXTS, CONTEXT = 7, 12


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def store(model):
    tokens = torch.randint(3, VOCAB, (CONTEXTS, CONTEXT), generator=torch.manual_seed(0))
    return ActivationStore(model, at="model.layers.0", tokens=tokens)


@pytest.fixture(scope="module")
def sae(store):
    made = SparseAutoencoder(store.d_in, 40, AbsTopK(k=3))
    made.info = dict(store.info)
    return made


def _data(path):
    found = re.search(r'type="application/json">(.*?)</script>', path.read_text(), re.DOTALL)
    return json.loads(found[1])


def test_the_survey_finds_what_all_codes_at_once_show(sae, store):
    found = survey(sae, store, examples=2)
    z = sae.eval().encode(store.rows(torch.arange(len(store))).x).detach()
    assert torch.equal(found.fired, (z != 0).sum(0))
    torch.testing.assert_close(found.sums, z.double().sum(0))
    assert found.histogram.sum() == (z != 0).sum()
    assert found.histogram.shape == (40, 2, BINS)
    assert torch.equal(found.histogram[:, 1].sum(1), (z < 0).sum(0))
    by_context = z.reshape(CONTEXTS, CONTEXT, 40)
    best = by_context.amax(1).clamp_min(0).topk(2, dim=0).values
    torch.testing.assert_close(found.positive.keys, best.T)
    lowest = (-by_context).amax(1).clamp_min(0).topk(2, dim=0).values
    torch.testing.assert_close(found.negative.keys, lowest.T)


def test_every_example_is_of_another_context(sae, store):
    found = survey(sae, store, examples=4)
    latent = int(found.fired.argmax())
    contexts = [int(found.contexts[row]) for row in found.positive.of(latent)]
    assert len(contexts) > 1
    assert len(set(contexts)) == len(contexts)


def test_whole_contexts_are_read_up_to_the_limit(sae, store):
    assert survey(sae, store, most_rows=30).rows == 2 * CONTEXT
    assert survey(sae, store, most_rows=1).rows == CONTEXT


def test_windows_show_the_tokens_and_the_activation_of_each(sae, store):
    found = survey(sae, store)
    latent = int(found.fired.argmax())
    vocabulary = Vocabulary(str)
    (detail,) = windows(sae, store, found, [latent], vocabulary).values()
    row, example = found.positive.of(latent)[0], detail["positive"][0]
    assert example["a"][example["p"]] == pytest.approx(
        float(found.positive.keys[latent, 0]), abs=1e-3
    )
    tokens = [int(vocabulary.texts[number]) for number in example["t"]]
    whole = store.tokens[found.contexts[row]].tolist()
    assert tokens == whole[: len(tokens)] or tokens == whole[-len(tokens) :]


def test_the_page_holds_every_alive_latent(sae, store, model, tmp_path):
    path = browse(sae, store, tmp_path / "latents.html", model=model)
    data = _data(path)
    alive = [latent for latent, fired in enumerate(data["fired"]) if fired]
    assert sorted(map(int, data["latents"])) == alive
    first = data["latents"][str(alive[0])]
    assert len(first["up"]) == len(first["down"]) == 8
    assert data["signed"] is True
    assert "src=" not in path.read_text()


@pytest.mark.parametrize(
    ("at", "why"),
    [
        ("blocks.0.mlp.hook_post", "the head reads 32, so this is not the residual stream"),
        ("blocks.0.attn.hook_z", "blocks.0.attn.hook_z is not on the residual stream"),
    ],
)
def test_a_hook_off_the_stream_gives_a_page_without_effects(at, why, store, model, tmp_path):
    there = ActivationStore(model, at=at, tokens=store.tokens.long())
    sae, told = SparseAutoencoder(there.d_in, 40, AbsTopK(k=3)), []
    path = browse(
        sae, there, tmp_path / "latents.html", model=model,
        remark=told.append, progress=lambda stage, done, total: told.append(stage),
    )  # fmt: skip
    assert why in told[0]  # before any activation is read
    data = _data(path)
    assert data["effects"] == told[0]
    assert not any("up" in latent for latent in data["latents"].values())
    assert any(latent["positive"] for latent in data["latents"].values())


def test_effects_of_a_transcoder_are_those_of_where_it_writes(store, model, tmp_path):
    mlp = "model.layers.0.mlp"
    reads = ActivationStore(model, at=f"{mlp}.input", tokens=store.tokens.long())
    sae, told = SparseAutoencoder(reads.d_in, 40, AbsTopK(k=3), transcoder=True), []
    path = browse(sae, reads, tmp_path / "a.html", model=model, remark=told.append)
    assert "does not say where this transcoder writes" in told[0]
    assert _data(path)["effects"] == told.pop()
    sae.info["hook_out"] = mlp
    data = _data(browse(sae, reads, tmp_path / "b.html", model=model, remark=told.append))
    assert told == [] and data["effects"] == ""
    assert all("up" in latent for latent in data["latents"].values())


def test_padding_is_not_shown(model, tmp_path):
    ids = torch.randint(3, VOCAB, (4, CONTEXT), generator=torch.manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, 6:] = mask[1, :5] = 0  # on either side
    there = ActivationStore(model, at="model.layers.0", batches=[
        {"input_ids": ids, "attention_mask": mask}, {"input_ids": ids[:, :5]},
    ])  # fmt: skip
    assert bool((there.tokens == -1).any())
    sae, vocabulary = SparseAutoencoder(there.d_in, 40, AbsTopK(k=3)), Vocabulary(str)
    found = survey(sae, there)
    details = windows(sae, there, found, list(range(40)), vocabulary)
    assert "-1" not in vocabulary.texts
    for latent, detail in details.items():
        for row, example in zip(found.positive.of(latent), detail["positive"], strict=True):
            context, position = found.contexts[row], found.positions[row]
            shown = int(vocabulary.texts[example["t"][example["p"]]])
            assert shown == there.tokens[context, position]
            assert example["a"][example["p"]] == max(example["a"])
    assert "\u00ff" not in _data(browse(sae, there, tmp_path / "latents.html"))["vocabulary"]


def test_gradients_choose_the_latents_where_the_store_has_them(model, store, tmp_path):
    there = ActivationStore(model, at="model.layers.0", tokens=store.tokens.long(), gradients=True)
    sae = SparseAutoencoder(there.d_in, 40, GradientTopK(k=3)).eval()
    rows = there.rows(torch.arange(len(there)))
    chosen = sae.sparse_encode(rows.x, gradient=rows.gradient)
    assert not torch.equal(chosen.columns, sae.sparse_encode(rows.x).columns)
    assert torch.equal(survey(sae, there).fired, chosen.fired())
    facts = dict(_data(browse(sae, there, tmp_path / "latents.html"))["facts"])
    assert "gradient" in facts["latents selected"]


def test_text_cannot_leave_the_data(sae, store, tmp_path, monkeypatch):
    page = "sparsecraft.domains.interpretability.browse.page.token_text"
    monkeypatch.setattr(page, lambda tokenizer: lambda number: "</script><!--<b>")
    path = browse(sae, store, tmp_path / "latents.html", latents=[0])
    assert path.read_text().count("</script>") == 2
    assert _data(path)["vocabulary"] in ([], ["</script><!--<b>"] * len(_data(path)["vocabulary"]))


def test_unknown_latents_and_stores_without_text_are_refused(sae, store, tmp_path):
    with pytest.raises(InvalidValue, match="latent 40 does not exist: there are 0 to 39"):
        browse(sae, store, tmp_path / "a.html", latents=[40])
    rows = ActivationStore.from_tensor(torch.randn(50, sae.d_in))
    with pytest.raises(InvalidValue, match="no tokens"):
        browse(sae, rows, tmp_path / "a.html")
    vectors = [torch.randn(3, 5, 16, generator=torch.manual_seed(0))]
    wordless = ActivationStore(Blocks(), at="blocks.0", batches=vectors)
    narrow = SparseAutoencoder(16, 40, AbsTopK(k=3))
    with pytest.raises(InvalidValue, match="no tokens"):
        browse(narrow, wordless, tmp_path / "a.html")
    with pytest.raises(InvalidValue, match="have 5 entries, the autoencoder reads 32"):
        browse(sae, ActivationStore.from_tensor(torch.randn(50, 5)), tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()
