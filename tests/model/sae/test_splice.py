"""An autoencoder in a model: what is replaced, what is left alone, and how latents are changed."""

import pytest
import torch
from tests.models import ARCHITECTURES, batches_for, tiny_gpt2, tiny_llama
from torch import nn

from sparsecraft.core.errors import InvalidValue, NonFinite, UnknownName
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.hook_points import hook_point
from sparsecraft.model.sae import SparseAutoencoder
from sparsecraft.model.sae.splice import spliced

HOOK = "blocks.0.hook_resid_post"
WIDTH, LATENTS = 32, 96


def an_sae(seed=0, k=8, **options):
    return SparseAutoencoder(WIDTH, LATENTS, TopK(k=k), seed=seed, **options)


def run(model, **changes):
    with torch.no_grad():
        return model(**{**batches_for(model)[0], **changes})[0]


def at_hook(model, name=HOOK, **changes):
    """Returns what the layers above the hook see."""
    seen = []
    with hook_point(model, name).watch(seen.append):
        run(model, **changes)
    return seen[-1]


def hooks(model):
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt-neox", "opt", "qwen3", "mixtral"])
def test_the_reconstruction_takes_the_activations_place(name):
    model, sae = ARCHITECTURES[name](), an_sae()
    before, plain = at_hook(model), run(model)
    with spliced(sae, model, HOOK):
        after, other = at_hook(model), run(model)
    torch.testing.assert_close(after, sae(before))
    assert not torch.allclose(other, plain) and torch.equal(run(model), plain)
    assert hooks(model) == 0


def test_the_method_takes_the_hook_of_the_training():
    model, sae = tiny_llama(), an_sae()
    with pytest.raises(InvalidValue, match="does not say where"), sae.spliced(model):
        pass
    sae.info["hook"] = HOOK
    before = at_hook(model)
    with sae.spliced(model) as inside:
        assert inside is model
        torch.testing.assert_close(at_hook(model), sae(before))


def test_with_the_error_kept_an_empty_edit_changes_nothing():
    model, sae = tiny_llama(), an_sae()
    plain = run(model)
    with sae.spliced(model, at=HOOK, keep_error=True):
        assert torch.equal(run(model), plain)
    with sae.spliced(model, at=HOOK, keep_error=True, edit={5: 0.0}):
        torch.testing.assert_close(run(model), plain)


def test_an_edit_moves_along_the_latents_direction():
    model, sae = tiny_llama(), an_sae()
    before = at_hook(model)
    with sae.spliced(model, at=HOOK, keep_error=True, edit={7: -5.0, 3: 2.0}):
        after = at_hook(model)
    moved = -5 * sae.W_dec[7] + 2 * sae.W_dec[3]
    torch.testing.assert_close(after - before, moved.expand_as(before), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("keep_error", [True, False])
@pytest.mark.parametrize("row_norm", ["none", "unit", "layer"])
def test_set_ablate_and_functions_are_what_the_dense_code_gives(keep_error, row_norm):
    model, sae = tiny_llama(), an_sae(row_norm=row_norm)
    before = at_hook(model).reshape(-1, WIDTH)
    z = sae.encode(before)
    fixed, ablated, scaled = (int(i) for i in z.gt(0).sum(0).topk(3).indices)
    changed = z.clone()
    changed[:, fixed], changed[:, ablated], changed[:, scaled] = 1.5, 0.0, 3 * z[:, scaled]
    inner, undo = sae.normalise_rows(before)
    expected = undo(sae.decode(changed))
    if keep_error:
        expected = expected + before - undo(sae.decode(z))
    changes = {"set": {fixed: 1.5}, "ablate": [ablated], "edit": {scaled: lambda z: 3 * z}}
    with sae.spliced(model, at=HOOK, keep_error=keep_error, **changes):
        after = at_hook(model).reshape(-1, WIDTH)
    torch.testing.assert_close(after, expected, atol=1e-5, rtol=1e-4)
    assert len(inner) == len(before)


def test_special_tokens_are_left_alone_as_in_the_training():
    model, sae = tiny_llama(), an_sae()
    ids = batches_for(model)[0]["input_ids"]
    sae.info["special_ids"] = [int(ids[0, 0]), int(ids[1, 5])]
    special = torch.isin(ids, torch.tensor(sae.info["special_ids"]))
    before = at_hook(model)
    with sae.spliced(model, at=HOOK):
        after = at_hook(model)
    assert torch.equal(after[special], before[special])
    torch.testing.assert_close(after[~special], sae(before[~special]))
    with sae.spliced(model, at=HOOK, leave_alone=()):
        torch.testing.assert_close(at_hook(model), sae(before))


def test_padding_is_left_alone():
    model, sae = ARCHITECTURES["bert"](), an_sae()
    mask = torch.ones(3, 12, dtype=torch.int64)
    mask[1, 7:] = 0
    name = "encoder.layer.0"
    before = at_hook(model, name, attention_mask=mask)
    with sae.spliced(model, at=name):
        after = at_hook(model, name, attention_mask=mask)
    assert torch.equal(after[1, 7:], before[1, 7:])
    torch.testing.assert_close(after[1, :7], sae(before[1, :7]))


def test_a_mask_says_where():
    model, sae = tiny_llama(), an_sae()
    mask = torch.zeros(3, 12, dtype=torch.bool)
    mask[2, 4] = True
    before = at_hook(model)
    with sae.spliced(model, at=HOOK, mask=mask, edit={0: 9.0}):
        after = at_hook(model)
    assert torch.equal(after[~mask], before[~mask])
    torch.testing.assert_close(after[mask], sae(before[mask]) + 9 * sae.W_dec[0])
    with (
        sae.spliced(model, at=HOOK, mask=mask[:2]),
        pytest.raises(InvalidValue, match=r"mask has the shape \(2, 12\)"),
    ):
        run(model)


def test_without_token_ids_special_tokens_cannot_be_told():
    model, sae = tiny_llama(), an_sae()
    embedded = model.get_input_embeddings()(batches_for(model)[0]["input_ids"])
    with (
        sae.spliced(model, at=HOOK, leave_alone=[1]),
        pytest.raises(InvalidValue, match="give mask=, or leave_alone="),
    ):
        model(inputs_embeds=embedded)


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_generation_sees_it_at_every_token_and_leaves_padding_alone(make):
    model, sae = make(), an_sae()
    sae.info["special_ids"] = [0]
    ids = batches_for(model)[0]["input_ids"].clone()
    mask = torch.ones_like(ids)
    ids[0, :3], mask[0, :3] = 0, 0
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    calls = []
    with (
        sae.spliced(model, at=HOOK, edit={4: 30.0}),
        hook_point(model, HOOK).watch(lambda x: calls.append(x.shape[1])),
    ):
        cached = model.generate(ids, attention_mask=mask, **settings)
        whole = model.generate(ids, attention_mask=mask, use_cache=False, **settings)
    assert calls[:5] == [12, 1, 1, 1, 1] and torch.equal(cached, whole)
    assert not torch.equal(cached, model.generate(ids, attention_mask=mask, **settings))


def test_a_model_in_bfloat16_stays_in_bfloat16():
    model, sae = tiny_llama().bfloat16(), an_sae()
    before = at_hook(model)
    with sae.spliced(model, at=HOOK):
        after = at_hook(model)
    assert after.dtype == torch.bfloat16 and run(model).dtype == torch.bfloat16
    torch.testing.assert_close(after, sae(before).bfloat16())


def test_blocks_can_be_nested_and_several_placed_at_once():
    model, first, second = tiny_llama(), an_sae(0), an_sae(1)
    other = "blocks.1.hook_resid_post"
    with first.spliced(model, at=HOOK), second.spliced(model, at=other, ablate=[2]):
        nested = run(model)
    with spliced({HOOK: first, other: second}, model, ablate={other: [2]}):
        assert torch.equal(run(model), nested)
    with first.spliced(model, at=HOOK), second.spliced(model, at=HOOK):
        twice = at_hook(model)
    torch.testing.assert_close(twice, second(first(at_hook(model))))
    with (
        pytest.raises(InvalidValue, match="by hook point"),
        spliced({HOOK: first}, model, edit={3: 1.0}),
    ):
        pass
    with pytest.raises(InvalidValue, match="leave at= out"), spliced({HOOK: first}, model, HOOK):
        pass


def test_the_model_is_whole_again_after_an_error():
    model, sae = tiny_llama(), an_sae()
    sae.train()
    with pytest.raises(KeyError), sae.spliced(model, at=HOOK):
        raise KeyError
    assert hooks(model) == 0 and sae.training


def test_gradients_pass():
    model, sae = tiny_llama(), an_sae()
    with sae.spliced(model, at=HOOK):
        model(**batches_for(model)[0]).logits.sum().backward()
    assert float(sae.W_dec.grad.norm()) > 0
    assert float(model.model.embed_tokens.weight.grad.norm()) > 0


def test_a_transcoder_reads_at_one_place_and_writes_at_another():
    model = tiny_llama()
    sae = SparseAutoencoder(WIDTH, LATENTS, TopK(k=8), d_out=64)
    nn.init.normal_(sae.W_dec, generator=torch.Generator().manual_seed(0))
    at, to = "model.layers.0.mlp.input", "model.layers.0.mlp.down_proj.input"
    x = at_hook(model, at)
    with sae.spliced(model, at=at, to=to):
        torch.testing.assert_close(at_hook(model, to), sae(x))
    y = at_hook(model, to)
    with sae.spliced(model, at=at, to=to, keep_error=True, edit={1: 2.0}):
        torch.testing.assert_close(at_hook(model, to), y + 2 * sae.W_dec[1])
    equally_wide = an_sae(transcoder=True)
    for transcoder in (sae, equally_wide):
        with pytest.raises(InvalidValue, match="give to="), transcoder.spliced(model, at=at):
            pass
    with (
        sae.spliced(model, at="blocks.1.hook_resid_post", to=to),
        pytest.raises(InvalidValue, match="must read before it writes"),
    ):
        run(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edit": {LATENTS: 1.0}}, f"whole numbers from 0 to {LATENTS - 1}"),
        ({"ablate": [-1]}, "latent -1 is not allowed"),
        ({"set": {"3": 1.0}}, "latent '3' is not allowed"),
        ({"edit": {3: 1.0}, "ablate": [3]}, "latent 3 is changed twice"),
        ({"edit": {3: "much"}}, r"edit\[3\]='much' is no number and no function"),
        ({"set": {3: abs}}, r"set\[3\]=.* is no number"),
        ({"at": "blocks.0.hook_resid_mid"}, "neither replaced nor differentiated"),
    ],
)
def test_changes_that_cannot_be_are_refused_before_the_model_runs(options, message):
    settings = {"at": HOOK, **options}
    with pytest.raises(InvalidValue, match=message), an_sae().spliced(tiny_llama(), **settings):
        pass


def test_an_unknown_hook_has_the_closest_names():
    model = tiny_llama()
    with (
        pytest.raises(UnknownName, match=r"blocks\.1\.hook"),
        an_sae().spliced(model, at="blocks.3.hook_resid_post"),
    ):
        pass
    assert hooks(model) == 0


def test_another_width_and_bad_functions_are_refused_in_the_pass():
    model = tiny_llama()
    wide = SparseAutoencoder(8, 16, TopK(k=2))
    with wide.spliced(model, at=HOOK), pytest.raises(InvalidValue, match="has 32 entries; this"):
        run(model)
    edit = {3: lambda z: z.sum()}
    with an_sae().spliced(model, at=HOOK, edit=edit), pytest.raises(InvalidValue, match="shape"):
        run(model)


def test_activations_that_are_not_finite_are_an_error():
    model = nn.Sequential(nn.Identity())
    with an_sae().spliced(model, at="0"), pytest.raises(NonFinite):
        model(torch.full((2, WIDTH), float("nan")))
