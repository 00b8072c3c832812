"""What benchmarks read of an autoencoder."""

import copy
import dataclasses

import pytest
import torch

from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.sae import SparseAutoencoder


def test_the_view_says_where_it_belongs_and_follows_changes():
    sae = SparseAutoencoder(8, 24, TopK(k=2))
    assert (sae.cfg.model_name, sae.cfg.hook_name, sae.cfg.hook_layer) == ("", "", None)
    sae.info.update(model="m", hook="model.layers.3", lens_hook="blocks.3.hook_resid_post")
    sae.info.update(context=64, prepend_bos=True, training={"tokens": 500})
    sae.double()
    cfg = sae.cfg
    assert (cfg.model_name, cfg.hook_name, cfg.hook_layer) == ("m", "blocks.3.hook_resid_post", 3)
    assert (cfg.d_in, cfg.d_sae, cfg.context_size, cfg.prepend_bos) == (8, 24, 64, True)
    assert (cfg.dtype, cfg.device, cfg.training_tokens) == ("float64", "cpu", 500)
    assert cfg.architecture == "TopK" and cfg.hook_head_index is None
    assert sae.dtype is torch.float64 and sae.device == torch.device("cpu")
    with pytest.raises(dataclasses.FrozenInstanceError):
        cfg.d_in = 9


def test_the_layer_is_that_of_a_module_path_too():
    sae = SparseAutoencoder(8, 24, TopK(k=2))
    for hook, layer in (("transformer.h.11.mlp", 11), ("model.layers.0", 0), ("pooler2", None)):
        sae.info["hook"] = hook
        assert sae.cfg.hook_layer == layer


@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_tensors_that_compute_what_it_computes(tied):
    torch.manual_seed(0)
    sae = SparseAutoencoder(8, 24, TopK(k=24), tied=tied).eval()
    assert (sae.W_enc.shape, sae.W_dec.shape) == ((8, 24), (24, 8))
    assert (sae.b_enc.shape, sae.b_dec.shape) == ((24,), (8,))
    x = torch.randn(5, 8)
    code = ((x - sae.b_dec) @ sae.W_enc + sae.b_enc).relu()
    torch.testing.assert_close(sae.encode(x), code)
    torch.testing.assert_close(sae.decode(code), sae(x))
    assert ("W_enc" in sae.state_dict()) is not tied
    assert torch.equal(copy.deepcopy(sae).W_enc, sae.W_enc)


def test_what_is_not_there_is_still_missing():
    with pytest.raises(AttributeError, match="W_other"):
        SparseAutoencoder(8, 24, TopK(k=2), tied=True).W_other  # noqa: B018
