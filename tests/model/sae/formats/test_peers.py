"""The libraries themselves read what we write; skipped where they are not installed."""

import pytest
import torch

CASES = [
    ("relu_sae", {}, {}),
    ("gated_sae", {}, {}),
    ("jumprelu", {}, {}),
    ("topk_sae", {"k": 4}, {}),
    ("abstopk", {"k": 4}, {}),
    ("batch_topk", {"k": 4}, {}),
    ("relu_sae", {}, {"row_norm": "layer"}),
    ("jumprelu", {}, {"d_out": 5, "skip": True}),
]


def test_saelens_loads_what_we_save(random_sae, x, tmp_path):
    sae_lens = pytest.importorskip("sae_lens")
    for n, (method, options, how) in enumerate(CASES):
        sae = random_sae(method, options, **how)
        sae.save_pretrained(tmp_path / str(n), format="saelens")
        again = sae_lens.SAE.load_from_disk(tmp_path / str(n))
        torch.testing.assert_close(again(x), sae(x), rtol=0, atol=1e-5)
        said = again.cfg.metadata
        assert (said.hook_name, said.model_class_name) == (sae.info["hook"], "HookedTransformer")


def test_sparsify_loads_what_we_save(random_sae, x, tmp_path):
    sparsify = pytest.importorskip("sparsify")
    sae = random_sae("topk_sae", {"k": 4})
    sae.save_pretrained(tmp_path / "sae", format="sparsify")
    again = sparsify.SparseCoder.load_from_disk(tmp_path / "sae")
    torch.testing.assert_close(again(x).sae_out, sae(x), rtol=0, atol=1e-5)
