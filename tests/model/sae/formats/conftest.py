import json

import pytest
import torch
from safetensors.torch import save_file

from sparsecraft.core import catalog
from sparsecraft.model.sae import SparseAutoencoder

D_IN, D_SAE = 6, 16


@pytest.fixture
def x():
    return 1.5 * torch.randn(10, D_IN, generator=torch.Generator().manual_seed(0)) + 0.3


@pytest.fixture
def weights():
    """Tensors of a dictionary with decoder rows of no special norm."""
    stream = torch.Generator().manual_seed(1)
    return {
        "W_enc": torch.randn(D_IN, D_SAE, generator=stream),
        "b_enc": torch.randn(D_SAE, generator=stream) * 0.3,
        "W_dec": torch.randn(D_SAE, D_IN, generator=stream) * 0.5,
        "b_dec": torch.randn(D_IN, generator=stream) * 0.3,
    }


@pytest.fixture
def random_sae():
    """Makes an autoencoder of a method whose tensors are all drawn."""

    def make(method, options=None, seed=0, **how):
        sae = SparseAutoencoder(D_IN, D_SAE, catalog.build(method, **(options or {})), **how)
        stream = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, tensor in sae.state_dict().items():
                values = torch.randn(tensor.shape, generator=stream) * 0.5
                if name in ("own_threshold", "own_log_threshold"):
                    positive = 0.1 + 0.3 * values.abs()
                    tensor.copy_(positive.log() if name.endswith("log_threshold") else positive)
                elif name == "b_enc" and method == "gba":
                    tensor.copy_(-values.abs())
                elif tensor.is_floating_point() and (
                    not name.startswith("own_") or method == "gated_sae"
                ):
                    tensor.copy_(values)
        sae.info = {"model": "gpt2", "hook": "blocks.3.hook_resid_post", "context": 64}
        return sae.eval()

    return make


@pytest.fixture
def saelens_folder(tmp_path, weights):
    """Writes a SAELens directory with these settings and tensors beside the usual ones."""

    def make(settings, extra=None, without=()):
        folder = tmp_path / f"saelens-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        tensors = {**weights, **(extra or {})}
        kept = {name: tensor for name, tensor in tensors.items() if name not in without}
        save_file(kept, folder / "sae_weights.safetensors")
        common = {"d_in": D_IN, "d_sae": D_SAE, "dtype": "float32"}
        (folder / "cfg.json").write_text(json.dumps({**common, **settings}))
        return folder

    return make
