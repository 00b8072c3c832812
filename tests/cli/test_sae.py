import json

import pytest
import torch
from tests.command import refused, run
from tests.models import save_directory, tiny_bert, tiny_llama

from sparsecraft import SparseAutoencoder

TEXT = "the cat sat on a mat . " * 300
HOOK = "model.layers.0"
SMALL = ("--context", 16, "--expansion", 2, "--steps", 12, "--batch", 64, "--option", "k=3")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save_directory(tiny_llama(), tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def trained(directory, text, tmp_path_factory):
    """An autoencoder that the command line trained, and what it printed."""
    from sparsecraft.cli.main import main

    out = tmp_path_factory.mktemp("saes") / "my-sae"
    command = ["sae", "train", directory, "--at", HOOK, "--text", text, *SMALL]
    assert main([str(part) for part in (*command, "--activation", "abstopk", "--out", out)]) == 0
    return out


def test_training_leaves_an_autoencoder_that_knows_where_it_belongs(trained, directory):
    sae = SparseAutoencoder.from_pretrained(trained)
    assert (sae.d_in, sae.d_sae) == (32, 64)
    assert sae.activation.k == 3
    assert sae.info["hook"] == HOOK
    assert sae.info["model"] == str(directory)
    assert (trained.parent / "my-sae.work" / "activations").is_dir()


def test_evaluation_needs_only_the_autoencoder_and_a_text(capsys, trained, text, tmp_path):
    figures = tmp_path / "figures.json"
    done = run(capsys, "sae", "eval", trained, "--text", text, "--context", 16, "--json", figures)
    assert done.code == 0, done.err
    assert "FVU" in done.out
    assert "loss recovered" in done.out.lower() or "recovered" in done.out
    found = json.loads(figures.read_text())
    assert 0 < found["fvu"] < 1
    assert found["l0"] <= 3


def test_a_page_is_written(capsys, trained, text, tmp_path):
    page = tmp_path / "latents.html"
    done = run(capsys, "sae", "browse", trained, "--text", text, "--context", 16, "--out", page)
    assert done.code == 0, done.err
    assert "written to" in done.out
    assert "Makes likelier" in page.read_text()


def test_conversion_keeps_the_reconstruction(capsys, trained, tmp_path):
    out = tmp_path / "for-saelens"
    done = run(capsys, "sae", "convert", trained, "--to", "saelens", "--out", out)
    assert done.code == 0, done.err
    x = torch.randn(5, 32)
    ours, theirs = (SparseAutoencoder.from_pretrained(path).eval() for path in (trained, out))
    torch.testing.assert_close(theirs(x), ours(x), rtol=1e-5, atol=1e-5)


def test_gradients_are_harvested_where_the_activation_wants_them(capsys, directory, text, tmp_path):
    out = tmp_path / "by-gradient"
    done = run(
        capsys, "sae", "train", directory, "--at", HOOK, "--text", text, *SMALL, "--activation",
        "gradient_topk", "--out", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    assert SparseAutoencoder.from_pretrained(out).info["gradients"] is True


def test_what_is_missing_or_unknown_is_said(capsys, directory, trained, text, tmp_path):
    out = tmp_path / "new"
    train = ("sae", "train", directory, "--text", text, *SMALL)
    assert "--out DIR is needed" in refused(capsys, *train, "--at", HOOK)
    assert "--at HOOK is needed" in refused(capsys, *train, "--out", out)
    assert "model.layers.0" in refused(capsys, *train, "--at", "model.layer.0", "--out", out)
    assert "exists and is not empty" in refused(capsys, *train, "--at", HOOK, "--out", trained)
    wanda = refused(capsys, *train, "--at", HOOK, "--out", out, "--activation", "wanda")
    assert "makes no codes" in wanda
    assert "topk_sae" in wanda
    assert "Did you mean 'train'" in refused(capsys, "sae", "trian")
    assert "--text FILE is needed" in refused(capsys, "sae", "browse", trained)
    assert not out.exists()


def test_another_model_is_refused(capsys, trained, text, tmp_path):
    other = save_directory(tiny_bert(), tmp_path / "bert")
    message = refused(capsys, "sae", "eval", trained, "--text", text, "--model", other)
    assert "model.layers.0" in message
