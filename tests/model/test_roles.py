"""What is attention is found by structure, in every architecture."""

import pytest
import torch
from tests.models import ARCHITECTURES, batches_for, tiny_mlp
from torch import nn

from sparsecraft.core.errors import NoMatch
from sparsecraft.lab.claims.source_bytes import byte_model
from sparsecraft.model.roles import find_roles
from sparsecraft.model.targets import find_targets

# Parts of names, which the code itself must not go by.
ATTENTION = ("attn", "attention")


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("with_batch", [True, False])
def test_attention_and_feed_forward_of_every_architecture(name, with_batch):
    model = ARCHITECTURES[name]()
    batch = batches_for(model)[0] if with_batch else None
    roles = find_roles(model, find_targets(model), batch)
    for target, role in roles.items():
        if ".experts." in target:
            assert role == "expert", target
        elif any(part in target for part in ATTENTION):
            assert role == "attention", target
        else:
            assert role == "feed-forward", target
    assert {"attention"} < set(roles.values())


def test_layers_outside_the_blocks_have_no_role():
    model = ARCHITECTURES["llama"]()
    roles = find_roles(model, find_targets(model, ["lm_head", "*.q_proj"]))
    assert roles["lm_head"] is None and roles["model.layers.0.self_attn.q_proj"] == "attention"


def test_projections_that_lie_beside_the_feed_forward_layers():
    model = byte_model(2, 64, 0, 32)
    roles = find_roles(model, find_targets(model), {"input_ids": torch.arange(64).view(4, 16)})
    ours = {name.rpartition(".")[2]: role for name, role in roles.items()}
    assert ours == dict.fromkeys("qkvo", "attention") | dict.fromkeys(
        ("fc1", "fc2"), "feed-forward"
    )


class Experts(nn.Module):
    """Attention, and a sum of experts in a list."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.many = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16)) for _ in range(3)
        )

    def forward(self, x):
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return x + sum(expert(x) for expert in self.many)


class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Experts(), Experts()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def test_experts_in_a_list_and_fused_attention():
    model = Mixture()
    roles = find_roles(model, find_targets(model), {"x": torch.ones(2, 5, 16)})
    assert {role for name, role in roles.items() if ".many." in name} == {"expert"}
    assert {role for name, role in roles.items() if ".attention" in name} == {"attention"}


def test_a_model_without_attention():
    model = tiny_mlp()
    with pytest.raises(NoMatch, match=r"which layers of Sequential are attention .* by a glob"):
        find_roles(model, find_targets(model), {"input": torch.ones(2, 12)})
