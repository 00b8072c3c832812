import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsecraft.core.errors import CheckpointError, UnknownName
from sparsecraft.model.sae import SparseAutoencoder, formats
from sparsecraft.model.sae.formats.inference_form import InferenceForm, batch_rule, log_of


def drawn(seed, **options):
    stream = torch.Generator().manual_seed(seed)
    return InferenceForm(
        W_enc=torch.randn(5, 9, generator=stream, dtype=torch.float64),
        b_enc=torch.randn(9, generator=stream, dtype=torch.float64),
        W_dec=torch.randn(9, 5, generator=stream, dtype=torch.float64),
        b_dec=torch.randn(5, generator=stream, dtype=torch.float64),
        **{"rule": "relu", **options},
    )


def gates(seed):
    stream = torch.Generator().manual_seed(seed + 1)
    scale, bias = torch.randn(2, 9, generator=stream, dtype=torch.float64)
    return {"rule": "gated", "log_scale": scale, "magnitude_bias": bias}


SEEDS = st.integers(0, 10_000)


@given(SEEDS, st.floats(0.05, 20.0))
def test_an_unscaled_form_reads_raw_inputs(seed, scale):
    form = drawn(seed, W_skip=torch.eye(5, dtype=torch.float64))
    x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    wanted = form.autoencoder()(scale * x) / scale
    torch.testing.assert_close(form.unscaled(scale).autoencoder()(x), wanted)


@given(SEEDS, st.booleans())
def test_moving_the_bias_changes_nothing(seed, gated):
    form = drawn(seed, **(gates(seed) if gated else {}))
    x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    moved = form.subtracting(False)
    assert not moved.subtract_bias
    torch.testing.assert_close(moved.autoencoder()(x), form.autoencoder()(x))
    torch.testing.assert_close(moved.subtracting(True).b_enc, form.b_enc)


@given(SEEDS, st.booleans())
def test_unit_rows_write_the_same(seed, gated):
    form = drawn(seed, **(gates(seed) if gated else {}))
    x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    unit = form.with_unit_rows()
    torch.testing.assert_close(unit.W_dec.norm(dim=1), torch.ones(9, dtype=torch.float64))
    torch.testing.assert_close(unit.autoencoder()(x), form.autoencoder()(x))


@given(st.lists(st.floats(0.0, 1e4, width=32), min_size=1, max_size=20))
def test_thresholds_survive_their_logarithms_from_below(values):
    theta = torch.tensor(values)
    back = log_of(theta).exp()
    tiny = torch.finfo(torch.float32).tiny
    assert bool((back <= theta.clamp_min(tiny)).all())
    torch.testing.assert_close(back, theta, rtol=2e-5, atol=1e-30)


def test_only_one_threshold_with_a_whole_k_stands_for_a_batch():
    assert batch_rule(torch.full((3,), 0.5), 4.0) == 4
    assert batch_rule(torch.full((3,), 0.5), 4.5) is None
    assert batch_rule(torch.full((3,), 0.5), None) is None
    assert batch_rule(torch.tensor([0.5, 0.6]), 4) is None


def test_a_format_that_does_not_exist_names_the_closest(random_sae, tmp_path):
    with pytest.raises(UnknownName, match="Did you mean 'saelens'"):
        random_sae("relu_sae").save_pretrained(tmp_path / "sae", format="sealens")
    with pytest.raises(UnknownName, match="format to write 'openai'"):
        random_sae("relu_sae").save_pretrained(tmp_path / "sae", format="openai")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnknownName, match="Did you mean 'sparsify'"):
        SparseAutoencoder.from_pretrained(tmp_path / "folder", format="sparsfy")


def test_a_folder_of_autoencoders_names_them(random_sae, tmp_path):
    random_sae("relu_sae").save_pretrained(tmp_path / "layers.1")
    random_sae("topk_sae", {"k": 2}).save_pretrained(tmp_path / "layers.2", format="sparsify")
    (tmp_path / "logs").mkdir()
    with pytest.raises(CheckpointError, match=r"hold one: layers\.1, layers\.2\."):
        SparseAutoencoder.from_pretrained(tmp_path)
    found = SparseAutoencoder.from_pretrained(tmp_path, "layers.2")
    assert found.activation.k == 2


def test_a_folder_of_something_else_says_what_is_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(CheckpointError, match=r"sparsecraft_sae\.json, cfg\.json with"):
        SparseAutoencoder.from_pretrained(tmp_path)


def test_a_scale_for_another_format_is_refused(random_sae, tmp_path):
    random_sae("relu_sae").save_pretrained(tmp_path / "sae")
    with pytest.raises(ValueError, match="activation_scale is for files of SAELens"):
        SparseAutoencoder.from_pretrained(tmp_path / "sae", activation_scale=0.5)


@pytest.mark.parametrize("form", formats.WRITTEN)
def test_each_written_format_is_recognised(form, random_sae, tmp_path):
    random_sae("topk_sae", {"k": 2}).save_pretrained(tmp_path / "sae", format=form)
    assert formats.recognised(tmp_path / "sae") == form
