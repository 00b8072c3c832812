import pytest
import torch

from sparsecraft.cli import main as cli
from sparsecraft.core import catalog
from sparsecraft.model.sae import SparseAutoencoder

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def saved(tmp_path):
    def make(method, **options):
        sae = SparseAutoencoder(6, 16, catalog.build(method, **options), seed=3)
        sae.info = {"hook": "blocks.3.hook_resid_post"}
        sae.save_pretrained(tmp_path / "mine")
        return sae.eval(), str(tmp_path / "mine")

    return make


def test_there_and_back(saved, tmp_path, capsys):
    sae, mine = saved("topk_sae", k=4)
    theirs, back = str(tmp_path / "theirs"), str(tmp_path / "back")
    assert cli.main(["sae", "convert", mine, "--to", "saelens", "--out", theirs]) == 0
    said = capsys.readouterr()
    assert "TopK, 16 latents of 6 entries, at blocks.3.hook_resid_post" in said.out + said.err
    assert cli.main(["sae", "convert", theirs, "--from", "saelens", "--out", back]) == 0
    again = SparseAutoencoder.from_pretrained(back)
    torch.testing.assert_close(again(X), sae(X), rtol=0, atol=1e-5)


def test_signed_codes_can_be_mirrored(saved, tmp_path, capsys):
    sae, mine = saved("abstopk", k=4)
    out = str(tmp_path / "out")
    assert cli.main(["sae", "convert", mine, "--to", "sparsify", "--out", out]) == 2
    assert "rectified" in capsys.readouterr().err
    assert cli.main(["sae", "convert", mine, "--to", "sparsify", "--rectify", "--out", out]) == 0
    again = SparseAutoencoder.from_pretrained(out)
    assert again.d_sae == 32
    torch.testing.assert_close(again(X), sae(X), rtol=0, atol=1e-5)


def test_mirroring_codes_without_signs_is_refused(saved, tmp_path, capsys):
    _, mine = saved("topk_sae", k=4)
    assert cli.main(["sae", "convert", mine, "--rectify", "--out", str(tmp_path / "out")]) == 2
    assert "--rectify is for signed codes" in capsys.readouterr().err


def test_what_exists_is_kept(saved, tmp_path, capsys):
    _, mine = saved("topk_sae", k=4)
    assert cli.main(["sae", "convert", mine, "--out", mine]) == 2
    assert "so it is kept" in capsys.readouterr().err


def test_what_is_left_out_is_said(saved, tmp_path, capsys):
    _, mine = saved("gradient_topk", k=4)
    out = str(tmp_path / "out")
    assert cli.main(["sae", "convert", mine, "--to", "dictionary_learning", "--out", out]) == 0
    said = capsys.readouterr()
    assert "note: GradientTopK is written as what it is without gradients" in said.out + said.err
