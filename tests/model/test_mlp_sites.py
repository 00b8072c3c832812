"""MLPs found by structure in every architecture, and the activation that is watched in each."""

import pytest
from tests.models import ARCHITECTURES, Blocks, tiny_cnn, tiny_mlp, tiny_opt, tiny_qwen3
from torch import nn

from sparsecraft.core.errors import NoMatch
from sparsecraft.lab.claims.source_bytes import byte_model
from sparsecraft.model.mlp_sites import find_mlp_sites

# Architecture: activation, gated, hidden units, the last parts of the matrices' names.
EXPECTED = {
    "llama": ("SiLUActivation", True, 64, ("gate_proj", "up_proj"), "down_proj"),
    "mistral": ("SiLUActivation", True, 64, ("gate_proj", "up_proj"), "down_proj"),
    "qwen2": ("SiLUActivation", True, 64, ("gate_proj", "up_proj"), "down_proj"),
    "qwen3": ("SiLUActivation", True, 64, ("gate_proj", "up_proj"), "down_proj"),
    "gpt2": ("NewGELUActivation", False, 128, ("c_fc",), "c_proj"),
    "opt": ("ReLU", False, 64, ("fc1",), "fc2"),
    "gpt-neox": ("GELUActivation", False, 64, ("dense_h_to_4h",), "dense_4h_to_h"),
    "bert": ("GELUActivation", False, 64, ("dense",), "dense"),
    "mixtral": ("SiLUActivation", True, 64, ("gate_up_proj",), "down_proj"),
    "vit": ("GELUActivation", False, 64, ("fc1",), "fc2"),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_its_mlps(name):
    sites = find_mlp_sites(ARCHITECTURES[name]())
    kind, gated, hidden, first, second = EXPECTED[name]
    assert len(sites) == (8 if name == "mixtral" else 2)
    for site in sites:
        assert (site.kind, site.gated, site.width, site.hidden) == (kind, gated, 32, hidden)
        assert tuple(each.rpartition(".")[2] for each in site.first) == first
        assert site.second.rpartition(".")[2] == second
        assert site.smooth == (kind != "ReLU")
        assert site.where == ("experts" if name == "mixtral" else "output")


def test_wide_heads_make_no_mlp_of_attention():
    """Where query and output meet in more entries than the width, they look like an MLP."""
    sites = find_mlp_sites(tiny_qwen3(head_dim=32))
    assert [site.name for site in sites] == ["model.layers.0.mlp", "model.layers.1.mlp"]


def test_a_function_is_seen_at_the_input_of_the_next_matrix():
    sites = find_mlp_sites(byte_model(2, 32, 0))
    assert [(site.module, site.where, site.kind) for site in sites] == [
        ("blocks.0.fc2", "input", "function"),
        ("blocks.1.fc2", "input", "function"),
    ]


def test_an_activation_shared_by_blocks_is_seen_block_by_block():
    model = Blocks()
    shared = nn.ReLU()
    for block in model.blocks:
        block[1] = shared
    assert [(s.module, s.where) for s in find_mlp_sites(model)] == [
        ("blocks.0.2", "input"),
        ("blocks.1.2", "input"),
    ]


def test_a_network_without_blocks_shows_its_activations():
    assert [(s.name, s.hidden) for s in find_mlp_sites(tiny_mlp())] == [("1", 0), ("3", 0)]
    assert [s.name for s in find_mlp_sites(tiny_cnn())] == ["2", "5"]


def test_selection_by_name():
    model = tiny_opt()
    one = find_mlp_sites(model, "*.layers.1")
    assert [site.name for site in one] == ["model.decoder.layers.1"]
    norm = find_mlp_sites(model, "*.layers.0.final_layer_norm")
    assert [(s.module, s.where) for s in norm] == [
        ("model.decoder.layers.0.final_layer_norm", "output")
    ]
    both = find_mlp_sites(model, ["*.layers.1", "*.layers.1"])
    assert len(both) == 1


def test_the_model_may_be_the_list_of_blocks_itself():
    block = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))  # noqa: E731
    sites = find_mlp_sites(nn.Sequential(block(), block()))
    assert [(s.name, s.module) for s in sites] == [("0", "0.1"), ("1", "1.1")]


def test_what_matches_nothing_is_named_with_the_closest():
    with pytest.raises(NoMatch, match=r"'\*\.activation_fm' match no MLP.*Closest: "):
        find_mlp_sites(tiny_opt(), "*.activation_fm")
    with pytest.raises(NoMatch, match="no MLP whose activation can be watched"):
        find_mlp_sites(nn.Linear(3, 2))
