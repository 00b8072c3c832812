"""The rotation: one function in another basis, undone bit for bit, refused where it is wrong."""

import copy
import json
import pickle

import pytest
import torch
from tests.models import (
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
    tiny_mistral,
    tiny_mixtral,
    tiny_neox,
    tiny_opt,
    tiny_qwen2,
    tiny_qwen3,
    tiny_vit,
)
from torch import nn

import sparsecraft
from sparsecraft.core.errors import InvalidValue
from sparsecraft.model.checkpoints import CONFIG, save
from sparsecraft.model.flops import count_flops
from sparsecraft.model.rotated_block import RotatedBlock, orthogonal_layers, shortcuts
from sparsecraft.model.rotation import right_basis, rotate
from sparsecraft.model.targets import find_targets

ROTATED = {
    "llama": tiny_llama,
    "mistral": tiny_mistral,
    "qwen2": tiny_qwen2,
    "qwen3": tiny_qwen3,
    "mixtral": tiny_mixtral,
}


def trained_like(make, scale=0.2, **changes):
    """Returns a model whose norms, biases and matrices are all far from their initial values."""
    model, draws = make(**changes), torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draws)
            parameter.copy_(1 + 0.3 * noise if _is_norm(parameter) else scale * noise)
    return model


def _is_norm(parameter):
    return parameter.dim() == 1 and bool((parameter == 1).all())


def ids(rows=3, tokens=12, seed=0):
    return torch.randint(3, 64, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def gaps(model, other):
    """Returns the largest entry off the diagonal of each layer's W^T W, over the largest of all."""
    found = {}
    for name in other:
        weight = model.get_submodule(name).weight.double()
        gram = weight.T @ weight
        found[name] = float((gram - gram.diagonal().diag()).abs().max() / gram.abs().max())
    return found


@pytest.mark.parametrize("name", ROTATED)
@torch.no_grad()
def test_the_function_is_unchanged(name):
    model = trained_like(ROTATED[name])
    before = model(input_ids=ids()).logits
    rotation = rotate(model)
    after = model(input_ids=ids()).logits
    assert float((after - before).abs().max()) < 1e-4
    assert 0 < rotation.report.difference < 1e-4
    assert isinstance(model.model.layers[0], RotatedBlock)


@pytest.mark.parametrize("name", ROTATED)
@torch.no_grad()
def test_keys_and_gates_have_orthogonal_columns(name):
    model = trained_like(ROTATED[name])
    rotation = rotate(model)
    expected = {f"model.layers.{i}.self_attn.k_proj" for i in range(2)}
    if name != "mixtral":
        expected |= {f"model.layers.{i}.mlp.gate_proj" for i in range(2)}
    assert rotation.orthogonal == orthogonal_layers(model) == expected
    assert max(gaps(model, expected).values()) < 1e-6
    assert rotation.report.off_diagonal == pytest.approx(gaps(model, expected), abs=1e-9)
    others = [n for n in ("q_proj", "v_proj") if hasattr(model.model.layers[0].self_attn, n)]
    assert min(gaps(model, [f"model.layers.0.self_attn.{n}" for n in others]).values()) > 1e-2


@torch.no_grad()
def test_grouped_keys_leave_their_last_columns_zero():
    model = trained_like(tiny_llama)
    rotate(model)
    key = model.model.layers[0].self_attn.k_proj.weight
    norms = key.norm(dim=0)
    assert key.shape == (16, 32)
    assert float(norms[16:].max()) < 1e-5 < float(norms[:16].min())


@torch.no_grad()
def test_every_matrix_is_turned_as_the_paper_says():
    dense = trained_like(tiny_llama, attention_bias=True, mlp_bias=True)
    model = copy.deepcopy(dense)
    rotate(model)
    first, second = dense.model.layers
    turned, following = model.model.layers
    enters = right_basis(_folded(first.self_attn.k_proj, first.input_layernorm))
    middle = right_basis(_folded(first.mlp.gate_proj, first.post_attention_layernorm))
    leaves = right_basis(_folded(second.self_attn.k_proj, second.input_layernorm))
    last = right_basis(_folded(second.mlp.gate_proj, second.post_attention_layernorm))
    expected = {
        "embedding": (model.model.embed_tokens.weight, _d(dense.model.embed_tokens) @ enters),
        "q": (turned.self_attn.q_proj.weight, _folded_q(first) @ enters),
        "o": (turned.self_attn.o_proj.weight, middle.T @ _d(first.self_attn.o_proj)),
        "o bias": (turned.self_attn.o_proj.bias, middle.T @ first.self_attn.o_proj.bias.double()),
        "q bias": (turned.self_attn.q_proj.bias, first.self_attn.q_proj.bias.double()),
        "up": (
            turned.mlp.up_proj.weight,
            _folded(first.mlp.up_proj, first.post_attention_layernorm) @ middle,
        ),
        "down": (turned.mlp.down_proj.weight, leaves.T @ _d(first.mlp.down_proj)),
        "down bias": (turned.mlp.down_proj.bias, leaves.T @ first.mlp.down_proj.bias.double()),
        "beside attention": (turned.attention_shortcut.weight.T, enters.T @ middle),
        "beside mlp": (turned.mlp_shortcut.weight.T, middle.T @ leaves),
        "last down": (following.mlp.down_proj.weight, last.T @ _d(second.mlp.down_proj)),
        "head": (model.lm_head.weight, _folded(dense.lm_head, dense.model.norm) @ last),
    }
    for name, (found, wanted) in expected.items():
        torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1e-6, msg=name)
    assert following.mlp_shortcut is None
    for norm in (turned.input_layernorm, turned.post_attention_layernorm, model.model.norm):
        assert bool((norm.weight == 1).all())


def _d(module):
    return module.weight.double()


def _folded(linear, norm):
    return _d(linear) * norm.weight.double()


def _folded_q(block):
    return _folded(block.self_attn.q_proj, block.input_layernorm)


def test_the_basis_of_a_wide_matrix_is_whole():
    matrix = torch.randn(3, 5, dtype=torch.float64)
    basis = right_basis(matrix)
    torch.testing.assert_close(basis.T @ basis, torch.eye(5, dtype=torch.float64))
    gram = (matrix @ basis).T @ (matrix @ basis)
    assert float((gram - gram.diagonal().diag()).abs().max()) < 1e-12


@pytest.mark.parametrize("name", ROTATED)
@torch.no_grad()
def test_undo_is_exact(name):
    model = trained_like(ROTATED[name], tie_word_embeddings=True)
    cls, state = type(model.model.layers[0]), copy.deepcopy(model.state_dict())
    before = model(input_ids=ids()).logits
    rotation = rotate(model)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    rotation.undo()
    assert type(model.model.layers[0]) is cls
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings is True
    assert torch.equal(model(input_ids=ids()).logits, before)
    with pytest.raises(InvalidValue, match="undone already"):
        rotation.undo()


@torch.no_grad()
def test_a_rotation_without_copy_says_so():
    rotation = rotate(tiny_llama(), undoable=False)
    with pytest.raises(InvalidValue, match=r"undoable=False.*Load the model again"):
        rotation.undo()


@torch.no_grad()
def test_after_undo_it_can_be_rotated_again():
    model = trained_like(tiny_llama)
    rotate(model).undo()
    before = model(input_ids=ids()).logits
    rotate(model)
    torch.testing.assert_close(model(input_ids=ids()).logits, before, rtol=0, atol=1e-4)


@torch.no_grad()
def test_own_keys_stay_and_shortcuts_are_added():
    model = tiny_llama()
    before = set(model.state_dict())
    rotate(model)
    assert set(model.state_dict()) - before == {
        "model.layers.0.attention_shortcut.weight",
        "model.layers.0.mlp_shortcut.weight",
        "model.layers.1.attention_shortcut.weight",
    }
    assert before < set(model.state_dict())


@pytest.mark.parametrize("name", ["llama", "qwen3", "mixtral"])
@torch.no_grad()
def test_greedy_tokens_are_the_same(name):
    model = trained_like(ROTATED[name])
    options = {"max_new_tokens": 20, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    start = {"input_ids": ids(2, 5), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    before = model.generate(**start, **options)
    rotate(model)
    assert before.shape == (2, 25)
    assert torch.equal(model.generate(**start, **options), before)


@torch.no_grad()
def test_hidden_states_are_still_recorded():
    model = trained_like(tiny_llama)
    before = model(input_ids=ids(), output_hidden_states=True).hidden_states
    rotate(model)
    after = model(input_ids=ids(), output_hidden_states=True).hidden_states
    assert len(after) == len(before) == 3
    for one, other in zip(before[:-1], after[:-1], strict=True):
        torch.testing.assert_close(one.norm(dim=-1), other.norm(dim=-1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@torch.no_grad()
def test_copies_compute_the_same_and_stand_alone(again):
    model = trained_like(tiny_llama)
    rotation = rotate(model)
    expected = model(input_ids=ids()).logits
    copied = again(model)
    assert torch.equal(copied(input_ids=ids()).logits, expected)
    assert orthogonal_layers(copied) == rotation.orthogonal
    rotation.undo()
    assert torch.equal(copied(input_ids=ids()).logits, expected)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_saved_and_loaded(tmp_path, tied):
    model = trained_like(tiny_llama, tie_word_embeddings=tied)
    rotation = rotate(model)
    expected = model(input_ids=ids()).logits
    save(model, tmp_path / "out", form="augmented")
    loaded = sparsecraft.load(tmp_path / "out")
    assert torch.equal(loaded(input_ids=ids()).logits, expected)
    assert orthogonal_layers(loaded) == rotation.orthogonal
    written = json.loads((tmp_path / "out" / CONFIG).read_text())["augmentations"]
    assert written["model.layers.1"]["mlp_shortcut"] is False
    assert written["model.layers.0"]["kind"] == "rotated block"


@torch.no_grad()
def test_tied_embeddings_are_untied_and_the_report_says_so():
    model = trained_like(tiny_llama, tie_word_embeddings=True)
    before = model(input_ids=ids()).logits
    rotation = rotate(model)
    torch.testing.assert_close(model(input_ids=ids()).logits, before, rtol=0, atol=1e-4)
    assert rotation.report.untied == 64 * 32
    assert "embedding and head were one matrix and are now two: 2048" in rotation.report.notes[1]
    assert model.config.tie_word_embeddings is False


@torch.no_grad()
def test_the_report_counts_what_the_shortcuts_cost():
    model = trained_like(tiny_llama)
    batch = {"input_ids": ids(1, 1), "use_cache": False}
    before = count_flops(model, batch)
    report = rotate(model).report
    weights = sum(shortcut.weight.numel() for shortcut in shortcuts(model))
    assert report.shortcuts == weights == 3 * 32 * 32
    assert report.extra_bytes == 4 * weights
    assert count_flops(model, batch) - before == report.extra_flops == 2 * weights
    blocks_and_head = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64) + 64 * 32 + 5 * 32
    assert report.extra_share == pytest.approx(weights / blocks_and_head)
    assert report.to_json()["notes"] == list(report.notes)


@torch.no_grad()
def test_experts_share_a_rotation_and_the_report_says_so():
    model = trained_like(tiny_mixtral)
    rotation = rotate(model)
    gates = model.model.layers[0].mlp.experts.gate_up_proj[:, :64].reshape(-1, 32).double()
    gram = gates.T @ gates
    assert float((gram - gram.diagonal().diag()).abs().max() / gram.max()) < 1e-6
    assert "model.layers.0.mlp, model.layers.1.mlp: the experts share" in rotation.report.notes[-1]


@torch.no_grad()
def test_low_precision_is_rounded_once_and_reported():
    model = trained_like(tiny_llama).bfloat16()
    before = model(input_ids=ids()).logits.double()
    rotation = rotate(model)
    after = model(input_ids=ids()).logits.double()
    assert next(model.parameters()).dtype == torch.bfloat16
    assert float((after - before).norm() / before.norm()) < 0.05
    assert 0 < rotation.report.difference < 0.1 * rotation.report.scale
    assert max(gaps(model, rotation.orthogonal).values()) < 2**-7
    rotation.undo()
    assert torch.equal(model(input_ids=ids()).logits.double(), before)


def test_it_trains_and_gradients_reach_every_weight():
    model = trained_like(tiny_llama)
    rotate(model)
    model.train()
    model(input_ids=ids(), labels=ids()).loss.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


@torch.no_grad()
def test_shortcuts_are_no_targets_unless_named():
    model = tiny_llama()
    rotate(model)
    names = [target.name for target in find_targets(model)]
    reasons = {row["name"]: row["reason"] for row in find_targets(model).table()}
    assert not [name for name in names if "shortcut" in name]
    assert "shortcut" in reasons["model.layers.0.attention_shortcut.weight"]
    assert len(find_targets(model, "*.attention_shortcut")) == 2


@torch.no_grad()
def test_progress_is_told():
    told = []
    rotate(tiny_llama(), progress=lambda *each: told.append(each))
    assert told == [("model.layers.0", 0, 2), ("model.layers.1", 1, 2), ("model.layers.1", 2, 2)]


@pytest.mark.parametrize(
    "make", [tiny_gpt2, tiny_opt, tiny_neox, tiny_bert], ids=lambda make: make.__name__
)
def test_layer_norm_is_refused_with_the_reason(make):
    model = make()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidValue, match=r"LayerNorm.*subtracts the mean.*transform=False"):
        rotate(model)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_model_without_tokens_is_refused():
    with pytest.raises(InvalidValue, match="ViTForImageClassification embeds no tokens"):
        rotate(tiny_vit())


def test_twice_is_refused():
    model = tiny_llama()
    rotate(model)
    with pytest.raises(InvalidValue, match="rotated already"):
        rotate(model)


def test_a_gated_model_is_refused():
    model = tiny_llama()
    sparsecraft.gate(model, "teal", rule="topk", sparsity=0.5)
    with pytest.raises(InvalidValue, match=r"LlamaForCausalLM has gates.*undo\(\), rotate"):
        rotate(model)


def test_a_model_on_several_devices_or_without_weights_is_refused():
    model = tiny_llama()
    model.lm_head.to("meta")
    with pytest.raises(InvalidValue, match="lies on cpu, meta"):
        rotate(model)
    with pytest.raises(InvalidValue, match="lies on meta"):
        rotate(model.to("meta"))


def test_a_rotation_that_is_broken_off_leaves_the_model_as_it_was():
    model = trained_like(tiny_llama, tie_word_embeddings=True)
    state = copy.deepcopy(model.state_dict())

    def stop(name, done, total):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rotate(model, progress=stop)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_model_without_head_is_refused():
    with pytest.raises(InvalidValue, match="Load the model with its head"):
        rotate(tiny_llama().model)


def test_a_pruned_model_is_refused():
    model = tiny_llama()
    sparsecraft.prune(model, "magnitude", sparsity=0.5)
    with pytest.raises(InvalidValue, match=r"pruned: 50% of its blocks' weights.*would fill"):
        rotate(model)


def test_quantised_models_are_refused():
    model = tiny_llama()
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(InvalidValue, match=r"quantization_config.*Rotate first, then quantise"):
        rotate(model)
    model = tiny_llama()
    model.model.layers[0].mlp.register_buffer("qweight", torch.zeros(2, 2, dtype=torch.int32))
    with pytest.raises(InvalidValue, match=r"qweight is torch\.int32"):
        rotate(model)


class Scaled(nn.Module):
    """A head whose logits a rotation would not leave alone: it looks at the stream itself."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.config = model.config

    def forward(self, input_ids, **kwargs):
        out = self.model(input_ids=input_ids, output_hidden_states=True, **kwargs)
        return out.logits + out.hidden_states[0][..., :1]


def test_what_reads_the_stream_elsewhere_is_found_out_and_undone():
    model = Scaled(trained_like(tiny_llama))
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidValue, match=r"moved its logits by.*The model is as it was"):
        rotate(model)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_an_input_that_does_not_fit_is_named():
    with pytest.raises(InvalidValue, match=r"does not run on the example input"):
        rotate(tiny_llama(), example_input={"pixel_values": torch.zeros(1)})


@torch.no_grad()
def test_stories_tells_the_same_story(data_dir, tmp_path):
    from sparsecraft.lab.tasks.llama2c import convert_stories260k
    from sparsecraft.model.checkpoints import load_pretrained

    files = data_dir / "stories260k"
    folder = convert_stories260k(
        files / "stories260K.bin", files / "tok512.bin", tmp_path / "model"
    )
    model = load_pretrained(folder)
    tokens = torch.randint(3, 500, (2, 32), generator=torch.Generator().manual_seed(1))
    before = model(input_ids=tokens).logits
    told = model.generate(tokens[:, :4], max_new_tokens=24, do_sample=False)
    rotation = rotate(model)
    assert float((model(input_ids=tokens).logits - before).abs().max()) < 1e-4
    assert torch.equal(model.generate(tokens[:, :4], max_new_tokens=24, do_sample=False), told)
    assert len(rotation.orthogonal) == 10
