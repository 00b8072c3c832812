"""Names of models as other libraries have them."""

import pytest

from sparsecraft.model.hub_names import hub_id


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("gpt2-small", "gpt2"),
        ("gpt2-xl", "gpt2-xl"),
        ("pythia-70m", "EleutherAI/pythia-70m"),
        ("pythia-70m-deduped-v0", "EleutherAI/pythia-70m-deduped"),
        ("pythia-1.4b", "EleutherAI/pythia-1.4b"),
        ("gemma-2-2b", "google/gemma-2-2b"),
        ("gemma-2b-it", "google/gemma-2b-it"),
        ("Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
        ("opt-1.3b", "facebook/opt-1.3b"),
        ("qwen2.5-0.5b-instruct", "Qwen/qwen2.5-0.5b-instruct"),
        ("mistral-7b", "mistralai/Mistral-7B-v0.1"),
        ("EleutherAI/pythia-70m", "EleutherAI/pythia-70m"),
        ("gelu-1l", "gelu-1l"),
    ],
)
def test_names_of_transformer_lens_become_ids(name, wanted):
    assert hub_id(name) == wanted


def test_a_directory_goes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2-small").mkdir()
    assert hub_id("gpt2-small") == "gpt2-small"
