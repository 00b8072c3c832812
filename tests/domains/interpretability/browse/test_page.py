"""The survey of a store and the page made of it, with a small real model."""

import json
import re

import pytest
import torch
from tests.models import VOCAB, tiny_llama

from sparsecraft.core.errors import InvalidValue
from sparsecraft.domains.interpretability.browse import browse
from sparsecraft.domains.interpretability.browse.survey import BINS, survey
from sparsecraft.domains.interpretability.browse.windows import Vocabulary, windows
from sparsecraft.methods.codes.abstopk import AbsTopK
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
    with pytest.raises(InvalidValue, match="have 5 entries, the autoencoder reads 32"):
        browse(sae, ActivationStore.from_tensor(torch.randn(50, 5)), tmp_path / "a.html")
    assert not (tmp_path / "a.html").exists()
