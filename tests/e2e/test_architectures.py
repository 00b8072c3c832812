"""Ten architectures pruned and compared with a copy pruned by hand, saved and loaded.

The copies are pruned here with plain loops over each architecture's own layers, written out below,
so that nothing of the library's own search for targets is trusted.
"""

from __future__ import annotations

import copy
import re

import pytest
import torch
from tests.models import ARCHITECTURES, batches_for
from torch import Tensor, nn

import sparsecraft
from sparsecraft.model.checkpoints import load, load_mask, save

# The weights that pruning must touch, as their authors named them, and how each is read.
BLOCKS = {
    "llama": r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)\.weight",
    "gpt2": r"transformer\.h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight",
    "opt": r"model\.decoder\.layers\.\d+\.(self_attn\.([qkv]|out)_proj|fc[12])\.weight",
    "gpt-neox": r"gpt_neox\.layers\.\d+\.(attention|mlp)\.(query_key_value|dense.*)\.weight",
    "bert": r"encoder\.layer\.\d+\..*(query|key|value|dense)\.weight",
    "mixtral": r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj\.weight|mlp\.experts\..*)",
    "vit": r".*layers?\.\d+\..*(query|key|value|q_proj|k_proj|v_proj|o_proj|dense|fc1|fc2)\.weight",
}
BLOCKS |= dict.fromkeys(("mistral", "qwen2", "qwen3"), BLOCKS["llama"])
METHODS = {
    "magnitude": {"sparsity": 0.6},
    "global_magnitude": {"sparsity": 0.6},
    "wanda": {"sparsity": 0.5},
    "2:4": {"pattern": "2:4"},
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_pruned_as_by_hand_saved_and_loaded(name, method, tmp_path):
    model = ARCHITECTURES[name]()
    by_hand = copy.deepcopy(model)
    batches = batches_for(model)
    used = "magnitude" if method == "2:4" else method
    report = sparsecraft.prune(model, used, calibration=batches, **METHODS[method])
    if method == "wanda":
        _wanda_by_hand(by_hand, name, batches)
    else:
        _magnitude_by_hand(by_hand, name, method)
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, by_hand.get_parameter(key)), key
    assert report.sparsity == pytest.approx(report.asked, abs=0.01)
    _check_saved(model, report.mask, batches[0], tmp_path / "saved")


def _check_saved(model: nn.Module, mask, batch: dict[str, Tensor], folder) -> None:
    save(model, folder, mask=mask)
    loaded = load(folder)
    assert type(loaded) is type(model)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[key]), key
    assert load_mask(folder) == mask
    with torch.no_grad():
        assert torch.equal(model(**batch)[0], loaded(**batch)[0])


def _matrices(model: nn.Module, name: str) -> dict[str, Tensor]:
    """Returns the prunable weights as matrices (outputs, inputs) that share the model's memory."""
    found: dict[str, Tensor] = {}
    for key, parameter in model.named_parameters():
        if not re.fullmatch(BLOCKS[name], key):
            continue
        weight = parameter.detach()
        if weight.dim() == 3:
            found |= {f"{key}[{i}]": weight[i] for i in range(weight.shape[0])}
        elif name == "gpt2" and "c_attn" in key:
            thirds = weight.T.split(weight.shape[0])
            found |= {f"{key}[{i}]": third for i, third in enumerate(thirds)}
        else:
            found[key] = weight.T if name == "gpt2" else weight
    assert found, name
    return found


def _magnitude_by_hand(model: nn.Module, name: str, method: str) -> None:
    matrices = _matrices(model, name)
    if method == "global_magnitude":
        every = torch.cat([weight.flatten() for weight in matrices.values()]).abs()
        limit = every.sort(descending=True).values[round(0.4 * every.numel()) - 1]
        for weight in matrices.values():
            weight[weight.abs() < limit] = 0
        return
    for weight in matrices.values():
        if method == "2:4":
            for row in weight:
                for group in row.split(4):
                    group[group.abs().argsort()[:2]] = 0
        else:
            kept = int(0.4 * weight.numel() + 0.5)
            limit = weight.abs().flatten().sort(descending=True).values[kept - 1]
            weight[weight.abs() < limit] = 0


def _wanda_by_hand(model: nn.Module, name: str, batches: list[dict[str, Tensor]]) -> None:
    """Prunes block after block; each sees inputs that come through the pruned blocks before it."""
    keys = list(_matrices(model, name))
    blocks = dict.fromkeys(re.match(r"(.*?\.\d+)\.", key)[1] for key in keys)
    for block in blocks:
        mine = [key for key in keys if key.startswith(f"{block}.")]
        squares = _squared_inputs(model, name, mine, batches)
        matrices = _matrices(model, name)
        for key in mine:
            if key not in squares:
                continue  # an expert that no token reached stays dense
            scores = matrices[key].abs() * squares[key].sqrt().float()
            for row, score in zip(matrices[key], scores, strict=True):
                row[score.argsort(stable=True)[: row.numel() - int(row.numel() / 2 + 0.5)]] = 0


def _squared_inputs(
    model: nn.Module, name: str, keys: list[str], batches: list[dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Returns the sum of squares of each input feature of each matrix, by whole forward passes."""
    sums: dict[str, Tensor] = {}

    def add(key: str, tokens: Tensor) -> None:
        total = tokens.double().square().flatten(0, -2).sum(0)
        sums[key] = sums.get(key, 0) + total

    def plain(module_keys: list[str]):
        def hook(module, args):
            for key in module_keys:
                add(key, args[0])

        return hook

    def experts(prefix: str):
        def hook(module, args):
            hidden, chosen = args[0].flatten(0, -2), args[1].flatten(0, -2)
            for i in range(module.num_experts):
                tokens = hidden[(chosen == i).any(-1)]
                if len(tokens):
                    add(f"{prefix}.gate_up_proj[{i}]", tokens)
                    gate, up = (tokens @ module.gate_up_proj[i].T).chunk(2, dim=-1)
                    add(f"{prefix}.down_proj[{i}]", nn.functional.silu(gate) * up)

        return hook

    handles = []
    owners: dict[str, list[str]] = {}
    for key in keys:
        parameter = re.sub(r"\[\d+\]$", "", key)
        owners.setdefault(parameter.rpartition(".")[0], []).append(key)
    for owner, owned in owners.items():
        hook = experts(owner) if owner.endswith("experts") else plain(owned)
        handles.append(model.get_submodule(owner).register_forward_pre_hook(hook))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for handle in handles:
        handle.remove()
    return sums
