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


def test_what_is_measured_can_be_chosen(capsys, trained, text, tmp_path):
    figures = tmp_path / "figures.json"
    command = ("sae", "eval", trained, "--text", text, "--json", figures)
    done = run(capsys, *command, "--contexts", 5)  # the context is that of the training
    assert done.code == 0, done.err
    found = json.loads(figures.read_text())["behaviour"]
    assert (found["kind"], found["contexts"]) == ("next token", 5)
    assert run(capsys, *command, "--behaves", "similarity").code == 0
    assert json.loads(figures.read_text())["behaviour"]["kind"] == "similarity"
    assert "next-token" in refused(capsys, *command, "--behaves", "reading")


def test_a_page_says_why_it_has_no_effects(capsys, trained, directory, text, tmp_path):
    page, z = tmp_path / "latents.html", "model.layers.0.self_attn.o_proj.input"
    command = ("sae", "browse", trained, "--text", text, "--out", page)
    done = run(capsys, *command, "--at", z)
    assert done.code == 0, done.err
    assert f"note: effects on logits are not shown: {z} is not on the residual stream" in done.out
    assert "is not on the residual stream" in page.read_text()
    assert '"up":' not in page.read_text()
    assert run(capsys, *command).code == 0
    assert '"up":' in page.read_text()
    assert run(capsys, *command, "--no-effects").code == 0
    assert '"up":' not in page.read_text()


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
    done = run(capsys, "sae", "eval", out, "--text", text)
    assert "latents were selected with the store's gradients" in done.out, done.err
    done = run(capsys, "sae", "eval", out, "--text", text, "--no-gradients")
    assert "latents were selected without gradients" in done.out, done.err


def test_a_transcoder_is_trained_and_measured(capsys, directory, text, tmp_path):
    out, mlp = tmp_path / "transcoder", "model.layers.0.mlp"
    done = run(
        capsys, "sae", "train", directory, "--at", f"{mlp}.input", "--to", mlp, "--skip", "--text",
        text, *SMALL, "--resample-every", 3, "--held-out", "20%", "--out", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    sae = SparseAutoencoder.from_pretrained(out)
    assert sae.info["hook_out"] == mlp and sae.W_skip is not None
    assert sae.info["training"]["held_out"] == 0.2
    assert "Resampling(every=3" in sae.info["training"]["resample"]
    figures = tmp_path / "figures.json"
    done = run(capsys, "sae", "eval", out, "--text", text, "--json", figures)
    assert "this is a transcoder" in done.out, done.err
    assert json.loads(figures.read_text())["fvu"] < 1
    page = tmp_path / "latents.html"
    assert run(capsys, "sae", "browse", out, "--text", text, "--out", page).code == 0
    assert '"up":' in page.read_text()  # an MLP adds to the residual stream


def test_several_places_are_read_in_one_pass(capsys, directory, text, tmp_path):
    out = tmp_path / "saes"
    done = run(
        capsys, "sae", "train", directory, "--at", HOOK, "--at", "model.layers.1", "--text", text,
        *SMALL, "--prefixes", "8,16", "--out", out,
    )  # fmt: skip
    assert done.code == 0, done.err
    found = {at: SparseAutoencoder.from_pretrained(out / at) for at in (HOOK, "model.layers.1")}
    assert {at: sae.info["hook"] for at, sae in found.items()} == {at: at for at in found}
    assert [sae.prefixes for sae in found.values()] == [(8, 16, 64)] * 2
    assert len(list((tmp_path / "saes.work" / "activations").iterdir())) == 2


def test_a_live_training_stores_no_activations(capsys, directory, text, tmp_path):
    out = tmp_path / "my-sae"
    train = ("sae", "train", directory, "--at", HOOK, "--text", text, *SMALL, "--live")
    done = run(capsys, *train, "--buffer", 1024, "--out", out)
    assert done.code == 0, done.err
    assert SparseAutoencoder.from_pretrained(out).info["hook"] == HOOK
    assert not (tmp_path / "my-sae.work" / "activations").exists()
    assert "the training's checkpoint stays in" in done.err + done.out
    other = tmp_path / "other"
    assert "--rows is of stored" in refused(capsys, *train, "--rows", 64, "--out", other)
    places = ("--at", "model.layers.1")
    assert "--live reads one place" in refused(capsys, *train, *places, "--out", other)
    assert not other.exists()


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
    assert "--skip is for transcoders" in refused(
        capsys, *train, "--at", HOOK, "--out", out, "--skip"
    )
    nowhere = refused(capsys, *train, "--at", HOOK, "--out", out, "--device", "abacus")
    assert "--device abacus cannot be used here" in nowhere
    assert "Did you mean 'train'" in refused(capsys, "sae", "trian")
    assert "--text FILE is needed" in refused(capsys, "sae", "browse", trained)
    assert not out.exists()


def test_another_model_is_refused(capsys, trained, text, tmp_path):
    other = save_directory(tiny_bert(), tmp_path / "bert")
    message = refused(capsys, "sae", "eval", trained, "--text", text, "--model", other)
    assert "model.layers.0" in message


def test_contexts_can_begin_with_bos_and_lose_their_first_positions(
    capsys, directory, text, tmp_path
):
    out = tmp_path / "sae"
    reading = ("--prepend-bos", "--skip-first", 3, "--text", text)
    done = run(capsys, "sae", "train", directory, "--at", HOOK, *reading, *SMALL, "--out", out)
    assert done.code == 0, done.err
    info = SparseAutoencoder.from_pretrained(out).info
    assert (info["prepend_bos"], info["skip_first"], info["context"]) == (True, 3, 16)
    figures = tmp_path / "figures.json"
    counts = []
    # As in the training; other positions; other contexts.
    for options in ((), ("--skip-first", 0), ("--no-prepend-bos",)):
        command = ("sae", "eval", out, "--text", text, "--json", figures, *options)
        assert run(capsys, *command).code == 0
        counts.append(json.loads(figures.read_text())["tokens"])
    assert counts[0] < counts[1] and counts[0] != counts[2]


def test_a_model_of_another_librarys_name_is_found_or_asked_for(
    capsys, monkeypatch, trained, text, directory
):
    from sparsecraft.core.errors import CheckpointError
    from sparsecraft.model import checkpoints, hub_names

    monkeypatch.setitem(hub_names._IDS, "my-small", str(directory))
    command = ("sae", "eval", trained, "--text", text, "--dtype", "float32")
    assert run(capsys, *command, "--model", "my-small").code == 0

    def missing(source, **_):
        raise CheckpointError(f"could not read the config of {source}")

    monkeypatch.setattr(checkpoints, "load_pretrained", missing)
    said = refused(capsys, *command, "--model", "gelu-1l")
    assert "If gelu-1l is what another library calls this model" in said and "org/name" in said
    assert "another library" not in refused(capsys, *command, "--model", "org/gelu-1l")
