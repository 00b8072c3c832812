"""Gemma Scope, Llama Scope and OpenAI: files made here, against the formulas of their libraries."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sparsecraft.core.errors import CheckpointError
from sparsecraft.model.sae import SparseAutoencoder

read = SparseAutoencoder.from_pretrained


@pytest.fixture
def threshold():
    return torch.linspace(0.1, 1.0, 16)


def gemma_output(weights, threshold, x):
    u = x @ weights["W_enc"] + weights["b_enc"]
    return (u.relu() * (u > threshold)) @ weights["W_dec"] + weights["b_dec"]


def test_gemma_scope(tmp_path, weights, threshold, x):
    folder = tmp_path / "gemma-scope-2b-pt-mlp" / "layer_20" / "width_16k" / "average_l0_71"
    folder.mkdir(parents=True)
    np.savez(folder / "params.npz", **weights, threshold=threshold)
    sae = read(folder)
    wanted = gemma_output(weights, threshold, x)
    torch.testing.assert_close(sae(x), wanted, rtol=0, atol=1e-5)
    assert torch.equal(read(folder / "params.npz")(x), sae(x))
    assert sae.info == {"hook": "blocks.20.hook_mlp_out", "model": "google/gemma-2-2b"}


def test_gemma_scope_2_with_a_skip(tmp_path, weights, threshold, x):
    skip = torch.randn(6, 6, generator=torch.Generator().manual_seed(3))
    lower = {name.replace("W_", "w_"): tensor for name, tensor in weights.items()}
    save_file(
        {**lower, "threshold": threshold, "affine_skip_connection": skip},
        tmp_path / "params.safetensors",
    )
    said = {
        "model_name": "google/gemma-3-1b-pt",
        "hf_hook_point_in": "model.layers.3.pre_feedforward_layernorm.output",
        "hf_hook_point_out": "model.layers.3.post_feedforward_layernorm.output",
    }
    (tmp_path / "config.json").write_text(json.dumps(said))
    sae = read(tmp_path)
    wanted = gemma_output(weights, threshold, x) + x @ skip
    torch.testing.assert_close(sae(x), wanted, rtol=0, atol=1e-5)
    assert sae.info["hook"] == said["hf_hook_point_in"]


def test_gemma_scope_names_what_is_missing(tmp_path, weights):
    np.savez(tmp_path / "params.npz", **weights)
    with pytest.raises(CheckpointError, match="lacks threshold"):
        read(tmp_path)
    (tmp_path / "params.npz").write_bytes(b"not an archive")
    with pytest.raises(CheckpointError, match="no NumPy archive of numbers"):
        read(tmp_path)


@pytest.fixture
def llama(tmp_path, weights):
    tensors = {
        "encoder.weight": weights["W_enc"].T.contiguous(),
        "encoder.bias": weights["b_enc"],
        "decoder.weight": weights["W_dec"].T.contiguous(),
        "decoder.bias": weights["b_dec"],
    }
    (tmp_path / "checkpoints").mkdir()
    save_file(tensors, tmp_path / "checkpoints" / "final.safetensors")

    def make(**settings):
        common = {
            "d_model": 6,
            "d_sae": 16,
            "hook_point_in": "blocks.5.hook_resid_post",
            "hook_point_out": "blocks.5.hook_resid_post",
            "norm_activation": "dataset-wise",
            "dataset_average_activation_norm": {"in": 4.0, "out": 4.0},
            "sparsity_include_decoder_norm": True,
            "apply_decoder_bias_to_pre_encoder": False,
            "act_fn": "jumprelu",
            "jump_relu_threshold": 0.6,
        }
        (tmp_path / "hyperparams.json").write_text(json.dumps({**common, **settings}))
        return tmp_path

    return make


def llama_output(weights, x, code, scale):
    """Returns what the model of the training gives, on scaled inputs, back in raw units."""
    u = scale * x @ weights["W_enc"] + weights["b_enc"]
    return (code(u) @ weights["W_dec"] + weights["b_dec"]) / scale


def test_llama_scope_thresholds_are_for_raw_activations(llama, weights, x):
    scale, norms = 6**0.5 / 4.0, weights["W_dec"].norm(dim=1)
    # A code of raw activations is u / scale, and is compared times the decoder's norm.
    wanted = llama_output(weights, x, lambda u: u * (u / scale * norms > 0.6), scale)
    sae = read(llama())
    torch.testing.assert_close(sae(x), wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(16))
    assert sae.info["hook"] == "blocks.5.hook_resid_post"


def test_llama_scope_topk_ranks_by_what_is_written(llama, weights, x):
    scale, norms = 6**0.5 / 4.0, weights["W_dec"].norm(dim=1)

    def code(u):
        kept = (u.relu() * norms).topk(3, dim=1).indices
        return torch.zeros_like(u).scatter(1, kept, u.relu().gather(1, kept))

    sae = read(llama(act_fn="topk", top_k=3, jump_relu_threshold=0.0))
    wanted = llama_output(weights, x, code, scale)
    torch.testing.assert_close(sae(x), wanted, rtol=0, atol=1e-5)


def test_llama_scope_rows_normalised_one_by_one(llama, weights, x):
    scale = 6**0.5 / x.norm(dim=1, keepdim=True)
    sae = read(llama(norm_activation="token-wise", act_fn="relu"))
    wanted = llama_output(weights, x, torch.relu, scale)
    torch.testing.assert_close(sae(x), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_glu_encoder": True}, "gated linear unit"),
        ({"norm_activation": "batch-wise"}, "norm_activation='batch-wise' has no equal"),
        ({"act_fn": "gelu"}, "act_fn='gelu' has no equal"),
        ({"dataset_average_activation_norm": None}, "does not say 'dataset_average_activation"),
        ({"act_fn": "topk", "jump_relu_threshold": 0.0}, "does not say 'top_k'"),
    ],
)
def test_llama_scope_refuses_what_has_no_equal(llama, settings, message):
    with pytest.raises(CheckpointError, match=message):
        read(llama(**settings))


@pytest.fixture
def openai(tmp_path, weights):
    def make(**changes):
        state = {
            "pre_bias": weights["b_dec"],
            "encoder.weight": weights["W_enc"].T.contiguous(),
            "latent_bias": weights["b_enc"],
            "decoder.weight": weights["W_dec"].T.contiguous(),
            "stats_last_nonzero": torch.zeros(16, dtype=torch.int64),
        }
        kept = {name: value for name, value in {**state, **changes}.items() if value is not None}
        torch.save(kept, tmp_path / "8.pt")
        return tmp_path / "8.pt"

    return make


def test_openai_files_without_a_name_are_relu(openai, weights, x):
    sae = read(openai())
    u = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    wanted = u.relu() @ weights["W_dec"] + weights["b_dec"]
    torch.testing.assert_close(sae(x), wanted, rtol=0, atol=1e-5)
    assert sae.row_norm == "none"


def test_openai_tied_files_decode_with_the_encoder(openai, weights, x):
    tied = weights["W_enc"].T.contiguous()
    sae = read(openai(**{"decoder.weight": None, "decoder.linear.weight": tied}))
    assert torch.equal(sae.W_dec, weights["W_enc"].T)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "Identity"}, "a ReLU in its place would give other codes"),
        ({"activation": "TopK"}, "does not say 'k'"),
        (
            {"activation": "TopK", "activation_state_dict": {"k": 3, "postact_fn": "Identity"}},
            "followed by 'Identity'",
        ),
        ({"pre_bias": None}, "lacks pre_bias"),
        ({"W_more": torch.ones(2)}, "has W_more too much"),
    ],
)
def test_openai_refuses_what_has_no_equal(openai, changes, message):
    with pytest.raises(CheckpointError, match=message):
        read(openai(**changes))
