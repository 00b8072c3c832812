"""Attention maps, penalty, gradients and prune counts against the official Sparse-ViT code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsecraft.core.attention_penalties import attention_penalty
from sparsecraft.core.kinds import Clock
from sparsecraft.methods.weights.sparse_then_prune import SparseThenPrune
from sparsecraft.model.captures import AttentionCapture
from sparsecraft.model.sparsifier import Sparsifier

ARRAYS = np.load(Path(__file__).with_name("sparse_then_prune.npz"))
WIDTH, HEADS, CLASSES = 12, 3, 5


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        split = lambda t: t.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # noqa: E731
        query, key, value = split(self.query(x)), split(self.key(x)), split(self.value(x))
        maps = (query @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5).softmax(-1)
        return self.out((maps @ value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn = Attention()
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(WIDTH, 24), "fc2": nn.Linear(24, WIDTH)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class ViT(nn.Module):
    """The official network with its projections as ordinary linear layers."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.embedding = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.pos_embedding = nn.Parameter(torch.zeros(1, 5, WIDTH))
        self.encoder_layers = nn.ModuleList([Block() for _ in range(blocks)])
        self.norm = nn.LayerNorm(WIDTH)
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.embedding(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], 1)
        x = x + self.pos_embedding
        for block in self.encoder_layers:
            x = block(x)
        return self.classifier(self.norm(x)[:, 0])


def official(name: str, array: np.ndarray) -> tuple[str, Tensor]:
    """Returns our name and layout of an official parameter (or of its gradient)."""
    value = torch.from_numpy(array)
    name = name.replace("transformer.pos_embedding.", "").replace("transformer.", "")
    if value.dim() == 3 and ".attn." in name:
        value = value.reshape(WIDTH, WIDTH).T  # (in, heads, size) or (heads, size, out)
    elif ".attn." in name:
        value = value.flatten()
    return name, value


def loaded(prefix: str, blocks: int) -> ViT:
    model = ViT(blocks).double().eval()
    model.load_state_dict(dict(official(n, a) for n, a in arrays(prefix)))
    return model


def arrays(prefix: str):
    return [(name[len(prefix) :], ARRAYS[name]) for name in ARRAYS if name.startswith(prefix)]


def array(name: str) -> Tensor:
    return torch.from_numpy(ARRAYS[name])


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


def test_maps_and_penalties():
    model = loaded("vit2__", 2)
    capture = AttentionCapture(model)
    close(model(array("X")), array("logits"))
    for number, found in enumerate(capture.maps):
        close(found, array(f"attn_layer{number}"))
        penalty = attention_penalty(capture.maps, layers=(number,))
        close(penalty, array(f"penalty_layer{number}"))
    close(attention_penalty(capture.maps), array("sparse_official"))
    assert len(capture.maps) == 2


def test_loss_and_all_gradients_through_the_host():
    model = loaded("vit2__", 2)
    sparsifier = Sparsifier(model, SparseThenPrune(), total_steps=1)
    model.train()
    loss = F.cross_entropy(model(array("X")), array("Y")) + sparsifier.loss()
    loss.backward()
    close(loss, array("loss_official"))
    gradients = dict(official(n, a) for n, a in arrays("grad__"))
    parameters = dict(model.named_parameters())
    assert gradients.keys() == parameters.keys()
    for name, parameter in parameters.items():
        close(parameter.grad, gradients[name])


@pytest.mark.parametrize("ratio", [0.1, 0.5])
def test_zero_counts_and_logits_after_global_pruning(ratio):
    model = loaded("vit12__", 12)
    method = SparseThenPrune(sparsity=ratio)
    targets = method.targets(model, None)
    parameters = dict(model.named_parameters())
    weights = {t.name: t.view(parameters[t.parameter]) for t in targets}
    mask = targets.mask(model, method.final_masks(weights, {}, Clock(0, 1)))
    mask.apply_(parameters)
    counts = {
        f"{official(n, np.zeros(0))[0]}.weight": tuple(a)
        for n, a in arrays(f"prune{ratio}_zeros__")
    }
    ours = {n: (int((parameters[n] == 0).sum()), parameters[n].numel()) for n in mask}
    assert ours == counts
    assert (mask.numel - mask.kept, mask.numel) == tuple(ARRAYS[f"prune{ratio}_total"])
    close(model(array("X")), array(f"prune{ratio}_logits"))
