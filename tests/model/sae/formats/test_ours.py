import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsecraft.core.errors import CheckpointError, InvalidValue
from sparsecraft.model.sae import SparseAutoencoder

METHODS = {
    "relu_sae": {},
    "attribution_sae": {},
    "gated_sae": {},
    "jumprelu": {},
    "topk_sae": {"k": 4},
    "abstopk": {"k": 4},
    "batch_topk": {"k": 4},
    "mutual_choice": {"k": 4},
    "feature_choice": {"k": 4},
    "gradient_topk": {"k": 4},
    "gba": {"groups": 2},
}
OPTIONS = [
    {},
    {"tied": True},
    {"row_norm": "unit"},
    {"row_norm": "layer"},
    {"prefixes": (4, 16)},
    {"d_out": 5, "skip": True},
    {"transcoder": True},
    {"transcoder": True, "subtract_bias": True},
    {"transcoder": False, "skip": True},
    {"subtract_bias": False},
    {"unroll": 2},
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_everything_comes_back_bit_equal(method, options, random_sae, x, tmp_path):
    if "unroll" in options and method in ("batch_topk", "mutual_choice", "feature_choice"):
        with pytest.raises(InvalidValue, match="selects over the batch"):
            random_sae(method, METHODS[method], **options)
        return
    sae = random_sae(method, METHODS[method], **options)
    sae.save_pretrained(tmp_path / "sae")
    again = SparseAutoencoder.from_pretrained(tmp_path / "sae")
    assert again.activation == sae.activation
    assert again.info == sae.info
    assert (again.transcoder, again.subtract_bias) == (sae.transcoder, sae.subtract_bias)
    assert not again.training
    for name, tensor in sae.state_dict().items():
        other = again.state_dict()[name]
        assert torch.equal(other.nan_to_num(7.0), tensor.nan_to_num(7.0)), name
        assert other.stride() == tensor.stride(), name
    assert torch.equal(again(x), sae(x))


def test_parameters_that_are_trained_are_trained_after_loading(random_sae, tmp_path):
    sae = random_sae("gba", {"groups": 2})
    sae.save_pretrained(tmp_path / "sae")
    again = SparseAutoencoder.from_pretrained(tmp_path / "sae")
    wanted = {name: p.requires_grad for name, p in sae.named_parameters()}
    assert {name: p.requires_grad for name, p in again.named_parameters()} == wanted
    assert not again.b_enc.requires_grad


def test_the_weights_type_can_be_chosen_and_thresholds_stay_precise(random_sae, tmp_path):
    random_sae("jumprelu").save_pretrained(tmp_path / "sae")
    again = SparseAutoencoder.from_pretrained(tmp_path / "sae", dtype=torch.bfloat16)
    assert again.W_dec.dtype == torch.bfloat16
    assert again.own_log_threshold.dtype == torch.float32


def test_the_files_are_the_documented_ones(random_sae, tmp_path):
    random_sae("topk_sae", {"k": 4}).save_pretrained(tmp_path / "sae")
    names = {path.name for path in (tmp_path / "sae").iterdir()}
    assert names == {"sparsecraft_sae.json", "sae.safetensors"}
    settings = json.loads((tmp_path / "sae" / "sparsecraft_sae.json").read_text())
    assert settings["sparsecraft_sae"] == 1
    assert settings["activation"] == {"method": "topk_sae", "k": 4}
    assert load_file(tmp_path / "sae" / "sae.safetensors")["W_enc"].shape == (6, 16)


@pytest.fixture
def saved(random_sae, tmp_path):
    random_sae("topk_sae", {"k": 4}).save_pretrained(tmp_path / "sae")
    return tmp_path / "sae"


def edit(folder, **changes):
    file = folder / "sparsecraft_sae.json"
    settings = json.loads(file.read_text())
    for name, value in changes.items():
        settings.pop(name) if value is None else settings.update({name: value})
    file.write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sparsecraft_sae": 2}, "version 2 of the format; this sparsecraft reads version 1"),
        ({"activaton": {}}, "'activaton', which is not known here.*Did you mean 'activation'"),
        ({"options": {"unrol": 1}}, "'unrol'.*Did you mean 'unroll'"),
        ({"activation": None}, "does not say 'activation'"),
        ({"activation": {"method": "topk_sea", "k": 4}}, "topk_sea.*Did you mean 'topk_sae'"),
        ({"activation": {"method": "topk_sae", "kk": 4}}, "option of topk_sae 'kk'"),
        ({"activation": {"method": "topk_sae", "k": 99}}, "k=99 exceeds d_sae=16"),
        ({"activation": {"method": "jumprelu"}}, "lacks own_log_threshold"),
        ({"d_sae": 12}, r"shape \(16, 6\); the settings say \(12, 6\)"),
    ],
)
def test_settings_that_do_not_fit_are_named(saved, changes, message):
    edit(saved, **changes)
    with pytest.raises(CheckpointError, match=message):
        SparseAutoencoder.from_pretrained(saved)


def rewrite(folder, change):
    tensors = load_file(folder / "sae.safetensors")
    change(tensors)
    save_file(tensors, folder / "sae.safetensors")


def test_missing_and_surplus_tensors_are_named(saved):
    rewrite(saved, lambda tensors: tensors.update(W_extra=tensors.pop("b_dec")))
    with pytest.raises(CheckpointError, match="lacks b_dec and has W_extra too much"):
        SparseAutoencoder.from_pretrained(saved)


def test_weights_that_are_not_finite_are_named(saved):
    rewrite(saved, lambda tensors: tensors["W_dec"].view(-1)[3].fill_(torch.nan))
    with pytest.raises(CheckpointError, match="W_dec has NaN or infinite values"):
        SparseAutoencoder.from_pretrained(saved)


def test_a_file_that_was_cut_off_is_named(saved):
    file = saved / "sae.safetensors"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=r"sae\.safetensors is damaged.*[Cc]opy it again"):
        SparseAutoencoder.from_pretrained(saved)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"sae\.safetensors is missing"):
        SparseAutoencoder.from_pretrained(saved)


def test_settings_that_were_cut_off_are_named(saved):
    file = saved / "sparsecraft_sae.json"
    file.write_text(file.read_text()[:30])
    with pytest.raises(CheckpointError, match=r"sparsecraft_sae\.json is damaged"):
        SparseAutoencoder.from_pretrained(saved)


def test_what_exists_is_kept_unless_asked(saved, random_sae):
    before = (saved / "sae.safetensors").read_bytes()
    other = random_sae("topk_sae", {"k": 2}, seed=5)
    with pytest.raises(CheckpointError, match="exists and is not empty, so it is kept"):
        other.save_pretrained(saved)
    assert (saved / "sae.safetensors").read_bytes() == before
    other.save_pretrained(saved, overwrite=True)
    assert SparseAutoencoder.from_pretrained(saved).activation.k == 2


def test_info_that_json_cannot_hold_is_refused_and_nothing_is_left(random_sae, tmp_path):
    sae = random_sae("topk_sae", {"k": 4})
    sae.info["texts"] = torch.zeros(2)
    with pytest.raises(InvalidValue, match="info or the activation's settings hold what JSON"):
        sae.save_pretrained(tmp_path / "sae")
    assert list(tmp_path.iterdir()) == []
