import json
from pathlib import Path

import pytest
import torch

from sparsecraft.core.errors import CheckpointError, InvalidValue
from sparsecraft.model.sae import SparseAutoencoder


@pytest.fixture
def folder(random_sae, tmp_path):
    random_sae("batch_topk", {"k": 4}).save_pretrained(tmp_path / "s", format="dictionary_learning")
    return tmp_path / "s"


def trainer(folder, **changes):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["trainer"].update(changes)
    file.write_text(json.dumps(config))


def tensors(folder, **changes):
    state = torch.load(folder / "ae.pt", weights_only=True)
    torch.save({**state, **changes}, folder / "ae.pt")


def test_a_threshold_that_was_never_set_is_no_relu(folder, x):
    tensors(folder, threshold=torch.tensor(-1.0))
    sae = SparseAutoencoder.from_pretrained(folder)
    with pytest.raises(InvalidValue, match="none were calibrated"):
        sae.encode(x)


def test_k_of_tensors_and_config_must_agree(folder):
    trainer(folder, k=5)
    with pytest.raises(CheckpointError, match="tensors say k=4 and its config k=5"):
        SparseAutoencoder.from_pretrained(folder)


def test_k_may_be_in_the_config_alone(random_sae, x, tmp_path):
    sae = random_sae("topk_sae", {"k": 4})
    sae.save_pretrained(tmp_path / "s", format="dictionary_learning")
    state = torch.load(tmp_path / "s" / "ae.pt", weights_only=True)
    old = {name: value for name, value in state.items() if name not in ("k", "threshold")}
    torch.save(old, tmp_path / "s" / "ae.pt")
    torch.testing.assert_close(
        SparseAutoencoder.from_pretrained(tmp_path / "s")(x), sae(x), rtol=0, atol=1e-5
    )
    trainer(tmp_path / "s", k=None)
    with pytest.raises(CheckpointError, match="neither its config nor its tensors say k"):
        SparseAutoencoder.from_pretrained(tmp_path / "s")


def test_a_class_without_an_equal_is_named(folder):
    trainer(folder, dict_class="CrossCoder")
    with pytest.raises(CheckpointError, match="Unknown class of dictionary_learning 'CrossCoder'"):
        SparseAutoencoder.from_pretrained(folder)


def test_without_its_config_nothing_is_guessed(folder):
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        SparseAutoencoder.from_pretrained(folder)


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_would_run_code_is_refused_and_does_not(folder, tmp_path):
    torch.save({"encoder.weight": Harmful(tmp_path / "ran")}, folder / "ae.pt")
    with pytest.raises(CheckpointError, match="could run any code"):
        SparseAutoencoder.from_pretrained(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("method", "options", "how", "message"),
    [
        ("abstopk", {"k": 4}, {}, r"rectified\(sae\)"),
        ("relu_sae", {}, {"row_norm": "unit"}, "save it as saelens or sparsecraft"),
        ("relu_sae", {}, {"d_out": 5}, "has no transcoders of this kind"),
    ],
)
def test_what_it_has_no_words_for_is_refused(method, options, how, message, random_sae, tmp_path):
    sae = random_sae(method, options, **how)
    with pytest.raises(InvalidValue, match=message):
        sae.save_pretrained(tmp_path / "sae", format="dictionary_learning")


@pytest.mark.parametrize(
    ("method", "options", "how"),
    [
        ("relu_sae", {}, {"subtract_bias": False}),
        ("gated_sae", {}, {"subtract_bias": False}),
        ("jumprelu", {}, {}),
        ("feature_choice", {"k": 4}, {}),
        ("batch_topk", {"k": 4}, {"prefixes": (4, 16)}),
    ],
)
def test_folds_keep_outputs(method, options, how, random_sae, x, tmp_path):
    sae = random_sae(method, options, **how)
    sae.save_pretrained(tmp_path / "sae", format="dictionary_learning")
    again = SparseAutoencoder.from_pretrained(tmp_path / "sae")
    torch.testing.assert_close(again(x), sae(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(again.encode(x), sae.encode(x), rtol=0, atol=1e-5)
    assert again.info["model"] == "gpt2"
