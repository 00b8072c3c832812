"""The module: what it computes, by hand; its forms; what it refuses."""

import copy
import pickle

import pytest
import torch

from sparsecraft.core.code import Code
from sparsecraft.core.errors import InvalidValue, NonFinite, UnknownName
from sparsecraft.core.seeds import generator
from sparsecraft.methods.codes.abstopk import AbsTopK
from sparsecraft.methods.codes.feature_choice import FeatureChoice
from sparsecraft.methods.codes.mutual_choice import MutualChoice
from sparsecraft.methods.codes.relu import ReLU
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.sae import SparseAutoencoder


def rows(*shape):
    return torch.randn(*shape, 6, generator=generator(1, "rows"))


def test_codes_and_outputs_by_hand():
    sae = SparseAutoencoder(2, 3, TopK(k=1))
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]]))
        sae.W_dec.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
        sae.b_dec.copy_(torch.tensor([1.0, 0.0]))
        sae.b_enc.copy_(torch.tensor([0.0, 0.5, 0.0]))
    x = torch.tensor([[4.0, 1.0], [-3.0, 0.0]])
    assert sae.encode(x).tolist() == [[3.0, 0.0, 0.0], [0.0, 0.0, 4.0]]
    assert sae(x).tolist() == [[4.0, 0.0], [-3.0, 0.0]]


def test_first_weights_are_unit_rows_and_their_transpose():
    sae = SparseAutoencoder(6, 12, TopK(k=3))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(12))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert sae.W_enc.stride() == (1, 6), "the weights of a latent lie side by side"
    assert not sae.b_dec.any()
    assert not sae.b_enc.any()


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)])
def test_leading_dimensions_stay(shape):
    sae, x = SparseAutoencoder(6, 12, TopK(k=3)), rows(*shape)
    assert sae.encode(x).shape == (*shape, 12)
    assert sae(x).shape == (*shape, 6)
    assert len(sae.sparse_encode(x)) == max(1, x.numel() // 6)


def test_signed_codes_of_p_latents_are_positive_codes_of_two_p_mirrored_ones():
    one, two = SparseAutoencoder(6, 12, AbsTopK(k=3)), SparseAutoencoder(6, 24, TopK(k=3))
    with torch.no_grad():
        two.W_enc.copy_(torch.cat([one.W_enc, -one.W_enc], dim=1))
        two.W_dec.copy_(torch.cat([one.W_dec, -one.W_dec]))
    x = rows(20)
    torch.testing.assert_close(one(x), two(x))
    assert bool((one.encode(x) < 0).any())


def test_a_tied_encoder_reads_along_the_directions_and_sizes_them():
    sae, x = SparseAutoencoder(6, 12, ReLU(), tied=True), rows(5)
    with torch.no_grad():
        sae.scale.fill_(2.0)
    z = (x @ sae.W_dec.T).relu()
    torch.testing.assert_close(sae.encode(x), z)
    torch.testing.assert_close(sae(x), 2 * z @ sae.W_dec)
    assert "W_enc" not in sae.state_dict()


@pytest.mark.parametrize("norm", ["unit", "layer"])
def test_outputs_follow_the_size_of_a_row_that_is_normalised(norm):
    sae, x = SparseAutoencoder(6, 12, TopK(k=3), row_norm=norm), rows(5)
    torch.testing.assert_close(sae(x * 1000), sae(x) * 1000, rtol=1e-3, atol=1e-2)
    torch.testing.assert_close(sae.encode(x * 1000), sae.encode(x), rtol=1e-3, atol=1e-3)


def test_a_transcoder_adds_the_skip():
    sae, x = SparseAutoencoder(6, 12, TopK(k=3), d_out=4, skip=True), rows(5)
    with torch.no_grad():
        sae.W_dec.copy_(torch.arange(48.0).reshape(12, 4))
        before = sae(x)
        sae.W_skip.fill_(0.5)
    torch.testing.assert_close(sae(x), before + 0.5 * x.sum(1, keepdim=True))
    assert sae.W_enc.shape == (6, 12)
    torch.testing.assert_close(sae.W_enc.norm(dim=0), torch.ones(12))


def test_a_sparse_code_decodes_as_its_dense_form():
    sae, x = SparseAutoencoder(6, 12, TopK(k=3)), rows(5)
    code = sae.sparse_encode(x)
    assert isinstance(code, Code)
    torch.testing.assert_close(sae.decode(code), sae.decode(code.dense()))


def test_copies_and_pickles_know_whether_they_were_trained():
    sae = SparseAutoencoder(6, 12, TopK(k=3))
    assert not copy.deepcopy(sae).trained
    sae.load_state_dict(SparseAutoencoder(6, 12, TopK(k=3), seed=2).state_dict())
    assert sae.trained
    again = pickle.loads(pickle.dumps(sae))
    assert again.trained
    assert torch.equal(again(rows(3)), sae(rows(3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_in": 0}, "d_in=0 is not allowed: give a whole number of at least 1"),
        ({"d_sae": 1.5}, r"d_sae=1\.5 is not allowed"),
        ({"unroll": True}, "unroll=True is not allowed"),
        ({"activation": TopK(k=13)}, "k=13 exceeds d_sae=12"),
        ({"prefixes": (6, 3, 12)}, "give ascending numbers from 1"),
        ({"prefixes": (3, 6)}, r"prefixes=\(3, 6\) must end with all of the dictionary, d_sae=12"),
    ],
)
def test_sizes_that_are_refused(options, message):
    settings = {"d_in": 6, "d_sae": 12, "activation": TopK(k=3), **options}
    with pytest.raises(InvalidValue, match=message):
        SparseAutoencoder(**settings)


def test_an_unknown_normalisation_is_named():
    with pytest.raises(UnknownName, match=r"Unknown row_norm 'layers'\. Did you mean 'layer'"):
        SparseAutoencoder(6, 12, TopK(k=3), row_norm="layers")


def test_rows_that_are_refused():
    sae = SparseAutoencoder(6, 12, TopK(k=3))
    with pytest.raises(InvalidValue, match=r"shape \(3, 5\) were given.*reads \(rows, 6\)"):
        sae.encode(torch.zeros(3, 5))
    with pytest.raises(InvalidValue, match="at least one row"):
        sae(torch.zeros(0, 6))
    with pytest.raises(InvalidValue, match=r"torch\.int64 cannot be encoded: convert"):
        sae(torch.zeros(3, 6, dtype=torch.int64))
    x = rows(3)
    x[1, 2], x[2, 0] = float("nan"), float("inf")
    with pytest.raises(NonFinite, match="2 of 3 rows have NaN or infinite values"):
        sae.encode(x)


@pytest.mark.parametrize(
    ("activation", "scope"),
    [
        (MutualChoice(k=3), "batch"),
        (FeatureChoice(k=3), "batch"),
        (AbsTopK(k=3, scope="batch"), "batch"),
    ],
    ids=repr,
)
def test_several_steps_do_not_select_over_a_batch(activation, scope):
    message = rf"unroll=2: {type(activation).__name__} selects over the {scope}.*Give unroll=1"
    with pytest.raises(InvalidValue, match=message):
        SparseAutoencoder(6, 12, activation, unroll=2)
    assert SparseAutoencoder(6, 12, activation).unroll == 1
    assert SparseAutoencoder(6, 12, AbsTopK(k=3), unroll=2).unroll == 2


@pytest.mark.parametrize("options", [{"d_out": 5}, {"transcoder": True}], ids=str)
def test_several_steps_reconstruct_what_they_read(options):
    with pytest.raises(InvalidValue, match="unroll=2 compares what is read with what is written"):
        SparseAutoencoder(6, 12, TopK(k=3), unroll=2, **options)
