"""`sparsecraft speed`: tables, the answer, files; one line for what the user can mend."""

from __future__ import annotations

import json

import pytest
from tests.command import refused, run
from tests.models import save_directory, tiny_bert, tiny_llama

from sparsecraft.cli.speed import grouped, parser, sizes
from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.pruning import prune

QUICK = ("--rounds", "3", "--tokens", "3", "--batch", "1", "--seconds", "1")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    model = tiny_llama()
    prune(model, "magnitude", sparsity=0.5)
    return save_directory(model, tmp_path_factory.mktemp("models") / "llama")


def test_layers_whole_model_texts_and_answer(capsys, directory, tmp_path):
    text = tmp_path / "held.txt"
    text.write_text("the cat sat on a mat . " * 60)
    outcome = run(
        capsys, "speed", directory, *QUICK, "--prompt", "the cat", "--text", text,
        "--json", tmp_path / "speed.json", "--report", tmp_path / "speed.html",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "model.layers.*.self_attn.q_proj" in outcome.out
    assert "left as it is: model.embed_tokens: an embedding" in outcome.out
    assert "dense wrote: the cat" in outcome.out
    assert "packed wrote: the cat" in outcome.out
    assert "tokens/s" in outcome.out
    assert "llama, neither pruned nor gated, " in outcome.out
    assert "perplexity " in outcome.out.splitlines()[-1]
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["kind"] == "decoder"
    assert found["quality"]["window"] == 64
    page = (tmp_path / "speed.html").read_text()
    assert "speed report" in page
    assert found["verdict"][0] in page.replace("&#39;", "'")


def test_every_layer_on_request(capsys, directory):
    outcome = run(capsys, "speed", directory, *QUICK, "--every")
    assert outcome.code == 0, outcome.err
    assert "model.layers.1.mlp.down_proj" in outcome.out


def test_an_encoder_refuses_a_prompt_and_is_timed_without(capsys, tmp_path):
    path = save_directory(tiny_bert(), tmp_path / "bert")
    said = refused(capsys, "speed", path, *QUICK, "--prompt", "the cat")
    assert "an encoder: it reads and does not write" in said
    assert "Leave --prompt out" in said
    outcome = run(capsys, "speed", path, *QUICK)
    assert outcome.code == 0, outcome.err
    assert "whole pass, batch 1" in outcome.out


def test_what_cannot_be_read_or_written_is_refused_before_measuring(capsys, directory, tmp_path):
    assert "there is no directory" in refused(capsys, "speed", tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "no config.json" in refused(capsys, "speed", tmp_path / "empty")
    said = refused(capsys, "speed", directory, "--json", tmp_path / "absent" / "speed.json")
    assert "there is no folder" in said
    assert "Did you mean --tokens" in refused(capsys, "speed", directory, "--tokns", "3")


def test_options_are_read():
    found = parser().parse_args(["m", "--batch", "32,1,1", "--types", "int8", "--tolerance", "3%"])
    assert (found.batch, found.types, found.tolerance) == ((1, 32), ("int8",), 0.03)
    found = parser().parse_args(["m"])
    assert (found.batch, found.types) == ((1, 32), ("float32", "bfloat16", "int8"))
    assert sizes("4") == (4,)
    with pytest.raises(InvalidValue, match="0 is not allowed"):
        parser().parse_args(["m", "--batch", "0"])
    assert grouped({"a.0.b": "x", "a.1.b": "x", "c": "y"}) == {"a.*.b": "x", "c": "y"}


def test_help_teaches_with_examples(capsys):
    outcome = run(capsys, "speed", "--help")
    assert outcome.code == 0
    assert "sparsecraft speed gated --prompt" in outcome.out
