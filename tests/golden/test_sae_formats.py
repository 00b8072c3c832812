"""Files that the real libraries wrote: codes and outputs of ours against theirs, there and back.

`sae_formats.zip` was made by `make/sae_formats.py` with sae-lens 6.54.12, eai-sparsify 1.3.3,
dictionary-learning 0.1.0 and the model file of openai/sparse_autoencoder; float32, within 1e-5.
`sae_family_files.npz` are files of SAELens as arrays, float64, within 1e-9.
"""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsecraft.model.sae import SparseAutoencoder, formats
from sparsecraft.model.sae.formats.inference_form import InferenceForm

HERE = Path(__file__).parent
ARCHIVE = HERE / "sae_formats.zip"
FAMILY = HERE / "sae_family_files.npz"
with zipfile.ZipFile(ARCHIVE) as _archive:
    CASES = sorted({name.split("/")[0] for name in _archive.namelist()})
ARCHITECTURES = (
    "standard", "gated", "jumprelu", "topk", "abstopk", "batchtopk", "matryoshka_batchtopk",
)  # fmt: skip
ACTIVATIONS = {
    "saelens_standard": "ReLU",
    "saelens_gated": "Gated",
    "saelens_jumprelu": "JumpReLU",
    "saelens_topk": "TopK",
    "saelens_topk_rescaled": "TopK",
    "saelens_abstopk_rescaled": "AbsTopK",
    "saelens_batchtopk": "BatchTopK",
    "saelens_matryoshka": "BatchTopK",
    "sparsify_topk": "TopK",
    "dictionary_learning_AutoEncoderTopK": "TopK",
    "dictionary_learning_BatchTopKSAE": "BatchTopK",
    "openai_relu": "ReLU",
    "openai_topk": "TopK",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sae_formats")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(path)
    return path


def opened(folder, case):
    """Returns the autoencoder of a case, and what its library computed."""
    place = folder / case
    if case.startswith("sparsify"):
        place = place / "layers.3"
    if case.startswith("openai"):
        place = place / "autoencoder.pt"
    golden = {k: torch.from_numpy(v) for k, v in np.load(folder / case / "golden.npz").items()}
    return SparseAutoencoder.from_pretrained(place), golden


def test_the_archive_covers_every_library():
    libraries = [case.split("_")[0] for case in CASES]
    counts = {name: libraries.count(name) for name in set(libraries)}
    assert counts == {"saelens": 15, "sparsify": 4, "dictionary": 7, "openai": 2}


@pytest.mark.parametrize("case", CASES)
def test_codes_and_outputs_are_those_of_the_library(folder, case):
    sae, golden = opened(folder, case)
    assert not sae.training
    out = sae(golden["x"])
    torch.testing.assert_close(out, golden["out"], rtol=0, atol=1e-5)
    torch.testing.assert_close(sae.encode(golden["x"]), golden["codes"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("case", "name"), ACTIVATIONS.items())
def test_each_rule_is_read_as_what_it_is(folder, case, name):
    assert type(opened(folder, case)[0].activation).__name__ == name


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("openai")])
def test_there_and_back_in_the_format_of_the_library(folder, case, tmp_path):
    sae, golden = opened(folder, case)
    form = next(name for name in formats.WRITTEN if case.startswith(name))
    sae.save_pretrained(tmp_path / "again", format=form)
    again = SparseAutoencoder.from_pretrained(tmp_path / "again", format=form)
    assert type(again.activation) is type(sae.activation)
    torch.testing.assert_close(again(golden["x"]), golden["out"], rtol=0, atol=1e-5)
    assert again.info["hook"] == sae.info["hook"]


@pytest.mark.parametrize("case", CASES)
def test_there_and_back_in_our_format_is_bit_equal(folder, case, tmp_path):
    sae, golden = opened(folder, case)
    assert sae.save_pretrained(tmp_path / "ours") == ()
    again = SparseAutoencoder.from_pretrained(tmp_path / "ours")
    assert again.info == sae.info
    assert torch.equal(again(golden["x"]), sae(golden["x"]))


def test_hooks_and_models_are_kept(folder):
    found = {case: opened(folder, case)[0].info for case in CASES}
    assert found["saelens_topk"]["hook"] == "blocks.3.hook_resid_post"
    assert found["saelens_topk"]["model"] == "gpt2"
    assert found["saelens_topk"]["context"] == 64
    assert found["saelens_transcoder"]["hook_out"] == "blocks.3.hook_mlp_out"
    assert found["sparsify_topk"]["hook"] == "layers.3"
    library = found["dictionary_learning_BatchTopKSAE"]
    assert (library["model"], library["hook"]) == (
        "EleutherAI/pythia-70m",
        "blocks.3.hook_resid_post",
    )


def test_nested_dictionaries_are_kept(folder):
    assert opened(folder, "saelens_matryoshka")[0].prefixes == (4, 8, 16)
    assert opened(folder, "dictionary_learning_MatryoshkaBatchTopKSAE")[0].prefixes == (4, 8, 16)


@pytest.fixture(scope="module")
def family():
    return dict(np.load(FAMILY))


def family_folder(family, architecture, place):
    """Writes the files of an architecture as SAELens did."""
    place.mkdir()
    start = f"{architecture}_saved_"
    tensors = {
        name.removeprefix(start): torch.from_numpy(np.atleast_1d(family[name]))
        for name in family
        if name.startswith(start) and not name.endswith("cfg_json")
    }
    save_file(tensors, place / "sae_weights.safetensors")
    (place / "cfg.json").write_text(str(family[f"{start}cfg_json"]))
    return tensors


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_files_of_saelens_give_its_output_and_are_written_as_they_were(
    family, architecture, tmp_path
):
    tensors = family_folder(family, architecture, tmp_path / "theirs")
    sae = SparseAutoencoder.from_pretrained(tmp_path / "theirs")
    out = sae(torch.from_numpy(family["x"])).detach().numpy()
    np.testing.assert_allclose(out, family[f"{architecture}_reloaded_out"], rtol=0, atol=1e-9)
    sae.save_pretrained(tmp_path / "ours", format="saelens")
    written = load_file(tmp_path / "ours" / "sae_weights.safetensors")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(written[name], tensor.to(torch.float64), rtol=0, atol=1e-9)
    settings = json.loads((tmp_path / "ours" / "cfg.json").read_text())
    assert settings == json.loads(str(family[f"{architecture}_saved_cfg_json"]))


@pytest.mark.parametrize("architecture", ["topk", "abstopk", "batchtopk"])
def test_decoder_norms_are_folded_as_saelens_folds_them(family, architecture):
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    raw = {name: torch.from_numpy(family[name]) for name in names}
    form = InferenceForm(rule="topk", k=4, **raw).with_unit_rows()
    for name in names:
        saved = torch.from_numpy(family[f"{architecture}_saved_{name}"])
        torch.testing.assert_close(getattr(form, name), saved, rtol=0, atol=1e-12)
