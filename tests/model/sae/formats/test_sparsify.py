import json

import pytest
import torch
from safetensors.torch import save_file

from sparsecraft.core.errors import CheckpointError, InvalidValue
from sparsecraft.model.sae import SparseAutoencoder


@pytest.fixture
def folder(tmp_path, weights):
    place = tmp_path / "run" / "h.3.mlp"
    place.mkdir(parents=True)
    tensors = {
        "encoder.weight": weights["W_enc"].T.contiguous(),
        "encoder.bias": weights["b_enc"],
        "W_dec": weights["W_dec"],
        "b_dec": weights["b_dec"],
    }
    save_file(tensors, place / "sae.safetensors")
    (place / "cfg.json").write_text(json.dumps({"d_in": 6, "num_latents": 16, "k": 3}))
    return place


def settings(folder, **changes):
    file = folder / "cfg.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_model_and_context_come_from_the_run(folder):
    (folder.parent / "config.json").write_text(json.dumps({"model": "gpt2", "ctx_len": 2048}))
    info = SparseAutoencoder.from_pretrained(folder).info
    assert info == {"hook": "h.3.mlp", "model": "gpt2", "context": 2048}


def test_a_transcoder_reads_the_input_of_its_module(folder):
    settings(folder, transcode=True)
    sae = SparseAutoencoder.from_pretrained(folder)
    assert (sae.info["hook"], sae.info["hook_out"]) == ("h.3.mlp.input", "h.3.mlp.output")
    assert not sae.subtract_bias


def test_signed_files_of_the_first_releases_keep_signs(folder, x):
    settings(folder, signed=True)
    sae = SparseAutoencoder.from_pretrained(folder)
    assert type(sae.activation).__name__ == "AbsTopK"
    assert bool((sae.encode(x) < 0).any())


def test_another_activation_is_refused(folder):
    settings(folder, activation="groupmax")
    with pytest.raises(CheckpointError, match="its activation is 'groupmax'"):
        SparseAutoencoder.from_pretrained(folder)


def test_a_missing_skip_is_named(folder):
    settings(folder, skip_connection=True)
    with pytest.raises(CheckpointError, match="lacks W_skip"):
        SparseAutoencoder.from_pretrained(folder)


@pytest.mark.parametrize(
    ("method", "options", "how", "message"),
    [
        ("relu_sae", {}, {}, "sparsify has only TopK, and this is relu"),
        ("jumprelu", {}, {}, "thresholds are for saelens and dictionary_learning"),
        ("batch_topk", {"k": 4}, {}, "batch-level selections and thresholds are for saelens"),
        ("abstopk", {"k": 4}, {}, r"rectified\(sae\).*or save it as saelens"),
        ("topk_sae", {"k": 4}, {"row_norm": "layer"}, "cannot be folded into the weights"),
        ("topk_sae", {"k": 4}, {"d_out": 5}, "reads and writes the same width"),
    ],
)
def test_what_sparsify_has_no_words_for_is_refused(
    method, options, how, message, random_sae, tmp_path
):
    with pytest.raises(InvalidValue, match=message):
        random_sae(method, options, **how).save_pretrained(tmp_path / "sae", format="sparsify")
    assert not (tmp_path / "sae").exists()


def test_a_bias_that_is_not_subtracted_is_folded(random_sae, x, tmp_path):
    sae = random_sae("topk_sae", {"k": 4}, subtract_bias=False)
    sae.save_pretrained(tmp_path / "sae", format="sparsify")
    again = SparseAutoencoder.from_pretrained(tmp_path / "sae")
    assert again.subtract_bias
    torch.testing.assert_close(again(x), sae(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{"transcoder": True}, {"transcoder": False, "skip": True}])
def test_what_is_reconstructed_comes_back(random_sae, x, tmp_path, options):
    sae = random_sae("topk_sae", {"k": 4}, **options)
    sae.save_pretrained(tmp_path / "sae", format="sparsify")
    settings = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert settings["transcode"] == options["transcoder"]
    again = SparseAutoencoder.from_pretrained(tmp_path / "sae")
    assert again.transcoder == sae.transcoder
    assert again.subtract_bias != again.transcoder
    torch.testing.assert_close(again(x), sae(x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(again.encode(x), sae.encode(x), atol=1e-5, rtol=1e-5)
