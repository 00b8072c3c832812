import json

import pytest
import torch

from sparsecraft.core.errors import CheckpointError, InvalidValue
from sparsecraft.model.sae import SparseAutoencoder
from sparsecraft.model.sae.rectified import rectified

read = SparseAutoencoder.from_pretrained


def plain_output(weights, x, code):
    """Returns a straightforward decoding, in which `code` maps pre-activations to a code."""
    u = (x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]
    return code(u) @ weights["W_dec"] + weights["b_dec"]


def top(k):
    def code(u):
        kept = u.topk(k, dim=1)
        return torch.zeros_like(u).scatter(1, kept.indices, kept.values.relu())

    return code


OLD_TOPK = [
    # Release 5: a "standard" file that is a TopK, which later loaders have read as a ReLU.
    {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 3}, "hook_name": "blocks.1.x"},
    {"architecture": "topk", "activation_fn": "topk", "activation_fn_kwargs": {"k": 3}},
    {"architecture": "topk", "activation_fn_kwargs": {"k": 3}},
    {"architecture": "topk", "k": 3},
]


@pytest.mark.parametrize("settings", OLD_TOPK, ids=str)
def test_a_topk_is_never_read_as_a_relu(settings, saelens_folder, weights, x):
    sae = read(saelens_folder(settings))
    assert type(sae.activation).__name__ == "TopK"
    torch.testing.assert_close(sae(x), plain_output(weights, x, top(3)), rtol=0, atol=1e-5)


def test_old_settings_at_the_top_level(saelens_folder, weights, x):
    folder = saelens_folder(
        {
            "hook_point": "blocks.2.hook_resid_pre",
            "model_name": "gpt2-small",
            "context_size": 128,
            "normalize_activations": False,
            "activation_fn_str": "relu",
        }
    )
    sae = read(folder)
    assert sae.info["hook"] == "blocks.2.hook_resid_pre"
    assert (sae.info["model"], sae.info["context"]) == ("gpt2-small", 128)
    torch.testing.assert_close(sae(x), plain_output(weights, x, torch.relu), rtol=0, atol=1e-5)


def test_a_scaling_factor_of_ones_is_dropped_and_a_tuned_one_is_folded(saelens_folder, weights, x):
    ones, tuned = torch.ones(16), torch.linspace(0.5, 1.5, 16)
    plain = plain_output(weights, x, torch.relu)
    torch.testing.assert_close(
        read(saelens_folder({}, {"scaling_factor": ones}))(x), plain, rtol=0, atol=1e-5
    )
    folder = saelens_folder({"finetuning_scaling_factor": True}, {"scaling_factor": tuned})
    wanted = plain_output(weights, x, lambda u: u.relu() * tuned)
    torch.testing.assert_close(read(folder)(x), wanted, rtol=0, atol=1e-5)
    with pytest.raises(CheckpointError, match="scaling_factor other than one"):
        read(saelens_folder({}, {"scaling_factor": tuned}))


@pytest.mark.parametrize("value", [True, "expected_average_only_in"])
def test_an_input_scale_is_folded_or_asked_for(value, saelens_folder, weights, x):
    folder = saelens_folder({"normalize_activations": value})
    with pytest.raises(CheckpointError, match=r"activation_scale=sqrt\(d_in\)"):
        read(folder)
    sae = read(folder, activation_scale=0.4)
    wanted = plain_output(weights, 0.4 * x, torch.relu) / 0.4
    torch.testing.assert_close(sae(x), wanted, rtol=0, atol=1e-5)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.4}))
    assert torch.equal(read(folder)(x), sae(x))


def test_a_scale_that_is_not_asked_for_is_refused(saelens_folder):
    with pytest.raises(CheckpointError, match="activations are not scaled"):
        read(saelens_folder({}), activation_scale=0.4)


def test_a_checkpoint_in_the_middle_of_a_training_over_batches(saelens_folder, weights, x):
    threshold = torch.tensor(0.7, dtype=torch.float64)
    sae = read(saelens_folder({"architecture": "batchtopk", "k": 4}, {"topk_threshold": threshold}))
    norms = weights["W_dec"].norm(dim=1)

    def code(u):
        return u * (u * norms > 0.7)

    assert type(sae.activation).__name__ == "BatchTopK"
    torch.testing.assert_close(sae(x), plain_output(weights, x, code), rtol=0, atol=1e-5)


def test_heads_are_marked_for_reshaping(random_sae, tmp_path):
    sae = random_sae("relu_sae")
    sae.info["hook"] = "blocks.3.attn.hook_z"
    sae.save_pretrained(tmp_path / "sae", format="saelens")
    settings = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert settings["reshape_activations"] == "hook_z"
    assert settings["metadata"]["hook_name"] == "blocks.3.attn.hook_z"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "topkk", "k": 3}, "Did you mean 'topk'"),
        ({"architecture": "temporal"}, "Unknown architecture of SAELens 'temporal'"),
        ({"activation_fn": "tanh-relu"}, "a ReLU in its place would give other codes"),
        ({"activation_fn": "topk"}, "topk without k"),
        ({"architecture": "topk", "k": 2.5}, "needs a whole number"),
        ({"normalize_activations": "covariance_whitening"}, "fold_activation_whitening"),
        ({"normalize_activations": "batch"}, "known are none, expected_average_only_in"),
    ],
)
def test_settings_without_an_equal_are_refused(settings, message, saelens_folder):
    with pytest.raises(CheckpointError, match=message):
        read(saelens_folder(settings))


def test_missing_and_surplus_tensors_are_named(saelens_folder):
    folder = saelens_folder({"architecture": "jumprelu"}, {"W_new": torch.ones(2)}, ("b_dec",))
    with pytest.raises(CheckpointError, match="lacks b_dec, threshold and has W_new too much"):
        read(folder)


@pytest.mark.parametrize("rows", [torch.float32, torch.bfloat16])
def test_half_precision_is_folded_in_float32(rows, saelens_folder, weights, x):
    folder = saelens_folder(
        {"normalize_activations": True}, {name: w.to(rows) for name, w in weights.items()}
    )
    sae = read(folder, activation_scale=0.3)
    assert sae.W_dec.dtype == rows
    wanted = (weights["W_enc"].to(rows).float() * 0.3).to(rows)
    assert torch.equal(sae.W_enc, wanted)


def test_unset_thresholds_cannot_be_written(random_sae, tmp_path):
    sae = random_sae("batch_topk", {"k": 4})
    sae.own_threshold.fill_(torch.nan)
    with pytest.raises(InvalidValue, match=r"format saelens.*call freeze_thresholds"):
        sae.save_pretrained(tmp_path / "sae", format="saelens")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "options", "how", "message"),
    [
        ("topk_sae", {"k": 4}, {"unroll": 2}, "makes unroll=2 proximal steps"),
        ("abstopk", {"k": 4, "scope": "batch"}, {}, r"rectified\(sae\)"),
        ("topk_sae", {"k": 4}, {"d_out": 5}, "sparsify has transcoders with TopK"),
        ("relu_sae", {}, {"d_out": 5, "row_norm": "layer"}, "do not undo row_norm='layer'"),
    ],
)
def test_what_saelens_has_no_words_for_is_refused(
    method, options, how, message, random_sae, tmp_path
):
    with pytest.raises(InvalidValue, match=message):
        random_sae(method, options, **how).save_pretrained(tmp_path / "sae", format="saelens")


def test_the_mirrored_copy_of_signed_codes_over_batches_can_be_written(random_sae, x, tmp_path):
    sae = random_sae("abstopk", {"k": 4, "scope": "batch"})
    rectified(sae).save_pretrained(tmp_path / "sae", format="saelens")
    again = read(tmp_path / "sae")
    torch.testing.assert_close(again(x), sae(x), rtol=0, atol=1e-5)


def test_biases_above_zero_of_gba_cannot_be_written(random_sae, tmp_path):
    sae = random_sae("gba", {"groups": 2})
    with torch.no_grad():
        sae.b_enc[3] = 0.1
    with pytest.raises(InvalidValue, match="biases above zero let negative entries pass"):
        sae.save_pretrained(tmp_path / "sae", format="saelens")


def test_what_is_folded_or_lost_is_said(random_sae, tmp_path):
    sae = random_sae("gba", {"groups": 2}, tied=True)
    notes = sae.save_pretrained(tmp_path / "sae", format="saelens")
    assert any("tied encoder is written out" in note for note in notes)
    assert any("controller of the biases is left out" in note for note in notes)


def test_sizes_of_settings_and_tensors_must_agree(saelens_folder):
    with pytest.raises(CheckpointError, match="settings say d_sae=99, and its tensors 16"):
        read(saelens_folder({"d_sae": 99}))
    with pytest.raises(CheckpointError, match=r"its b_enc has the shape \(3,\).*\(16,\) is needed"):
        read(saelens_folder({}, {"b_enc": torch.ones(3)}))
    with pytest.raises(CheckpointError, match="matrices are needed"):
        read(saelens_folder({}, {"W_enc": torch.ones(6)}))


@pytest.mark.parametrize("method", ["relu_sae", "jumprelu"])
@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_of_equal_widths_comes_back(random_sae, x, tmp_path, method, skip):
    sae = random_sae(method, transcoder=True, skip=skip)
    sae.save_pretrained(tmp_path / "sae", format="saelens")
    settings = json.loads((tmp_path / "sae" / "cfg.json").read_text())
    assert settings["architecture"].endswith("skip_transcoder" if skip else "transcoder")
    again = SparseAutoencoder.from_pretrained(tmp_path / "sae")
    assert (again.transcoder, again.subtract_bias) == (True, False)
    torch.testing.assert_close(again(x), sae(x), atol=1e-5, rtol=1e-5)


def test_a_skip_is_not_lost_where_no_transcoder_is_said(random_sae, tmp_path):
    sae = random_sae("gated_sae", transcoder=False, skip=True)
    with pytest.raises(InvalidValue, match="its transcoders know ReLU and JumpReLU"):
        sae.save_pretrained(tmp_path / "sae", format="saelens")
    with pytest.raises(InvalidValue, match="has no transcoders of this kind"):
        sae.save_pretrained(tmp_path / "sae", format="dictionary_learning")


def metadata_of(sae, folder):
    notes = sae.save_pretrained(folder, format="saelens")
    settings = json.loads((folder / "cfg.json").read_text())
    return settings["metadata"], notes, settings


STORED = {
    "model": "gpt2", "context": 32, "prepend_bos": True, "special_ids": [5, 6], "skip_first": 2,
    "dataset": "some/text", "model_class": "GPT2LMHeadModel",
}  # fmt: skip


def test_how_activations_were_taken_is_written_and_read_again(random_sae, tmp_path):
    sae = random_sae("relu_sae")
    sae.info = {**STORED, "hook": "blocks.3.hook_resid_post"}
    found, notes, _ = metadata_of(sae, tmp_path / "sae")
    assert found["prepend_bos"] is True and found["exclude_special_tokens"] == [5, 6]
    assert found["seqpos_slice"] == [2, None] and found["dataset_path"] == "some/text"
    assert (found["context_size"], found["model_name"], notes) == (32, "gpt2", ())
    again = read(tmp_path / "sae").info
    names = ("model", "context", "prepend_bos", "special_ids", "skip_first", "dataset", "hook")
    assert {n: again[n] for n in names} == {n: sae.info[n] for n in names}
    sae.info |= {"special_ids": [], "skip_first": 0, "prepend_bos": None}
    found, _, _ = metadata_of(sae, tmp_path / "other")
    assert found["exclude_special_tokens"] is False and found["seqpos_slice"] == [None]
    assert "prepend_bos" not in found  # SAELens then asks for it, and guesses nothing


@pytest.mark.parametrize(
    ("info", "wanted"),
    [
        (
            {"hook": "transformer.h.3", "place": "transformer.h.3.output",
             "lens_hook": "blocks.3.hook_resid_post"},
            {"hook_name": "blocks.3.hook_resid_post", "model_class_name": "HookedTransformer",
             "hf_hook_name": "transformer.h.3"},
        ),
        (
            {"hook": "transformer.h.3.ln_1.output", "place": "transformer.h.3.ln_1.output"},
            {"hook_name": "transformer.h.3.ln_1", "model_class_name": "AutoModelForCausalLM",
             "hf_hook_name": "transformer.h.3.ln_1"},
        ),
        (
            {"hook": "gpt_neox.layers.1"},
            {"hook_name": "gpt_neox.layers.1", "model_class_name": "AutoModelForCausalLM",
             "hf_hook_name": "gpt_neox.layers.1"},
        ),
        (
            {"hook": "model.layers.1.self_attn.o_proj.input",
             "place": "model.layers.1.self_attn.o_proj.input",
             "lens_hook": "blocks.1.attn.hook_z"},
            {"hook_name": "blocks.1.attn.hook_z", "model_class_name": "HookedTransformer"},
        ),
    ],
    ids=lambda value: value.get("hook", ""),
)  # fmt: skip
def test_the_hook_is_named_for_the_model_that_has_it(info, wanted, random_sae, tmp_path):
    sae = random_sae("relu_sae")
    sae.info = {"model": "m", "model_class": "GPT2LMHeadModel", **info}
    found, notes, settings = metadata_of(sae, tmp_path / "sae")
    keys = ("hook_name", "model_class_name", "hf_hook_name")
    assert {k: found[k] for k in keys if k in found} == wanted and notes == ()
    heads = wanted["hook_name"].endswith("hook_z")
    assert settings["reshape_activations"] == ("hook_z" if heads else "none")


def test_a_place_that_saelens_cannot_hook_is_said(random_sae, tmp_path):
    sae = random_sae("relu_sae")
    sae.info = {"hook": "model.layers.1.mlp.input", "place": "model.layers.1.mlp.input"}
    found, notes, _ = metadata_of(sae, tmp_path / "input")
    assert found["hook_name"] == "model.layers.1.mlp.input" and "model_class_name" not in found
    assert any("model.layers.1.mlp.input is neither" in note for note in notes)
    sae.info = {"hook": "layers.1", "place": "layers.1.output", "model_class": "LlamaModel"}
    _, notes, _ = metadata_of(sae, tmp_path / "base")
    assert any("activations are of LlamaModel" in note for note in notes)


def test_what_a_file_of_saelens_said_of_its_hook_stays(saelens_folder, tmp_path):
    said = {
        "hook_name": "backbone.layers.3", "model_class_name": "HookedMamba", "model_name": "m",
        "prepend_bos": False, "exclude_special_tokens": True, "seqpos_slice": [4, None],
    }  # fmt: skip
    sae = read(saelens_folder({"metadata": said}))
    assert sae.info["prepend_bos"] is False and sae.info["skip_first"] == 4
    found, _, _ = metadata_of(sae, tmp_path / "sae")
    assert {name: found[name] for name in said} == said
