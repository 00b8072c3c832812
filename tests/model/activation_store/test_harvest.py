"""Harvests: windows, what is left out, several places, types, and the model's own state."""

import pytest
import torch
from tests.models import (
    VOCAB,
    batches_for,
    save_directory,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
    tiny_mlp,
    tiny_opt,
    tiny_tokenizer,
)
from torch import nn

from sparsecraft.core.errors import InvalidValue, NonFinite, StoreError, UnknownName
from sparsecraft.model.activation_store import ActivationStore
from sparsecraft.model.activation_store.special_tokens import special_ids

HOOK = "blocks.0.hook_resid_post"
END = 2  # </s>, set between texts
IDS = torch.arange(3, 43).view(2, 20)
GIVEN = {"texts": None, "context": None}


def texts(count=12, words=30):
    return [" ".join(str((i * 7 + j * j) % 50) for j in range(words)) for i in range(count)]


def stored(store):
    return store.rows(torch.arange(len(store)))


def harvest(model, **options):
    settings = {"at": HOOK, "texts": texts(), "tokenizer": tiny_tokenizer(), "context": 16}
    return ActivationStore(model, **{**settings, "batch_size": 4, **options})


def test_rows_are_what_the_module_gave():
    model = tiny_llama()
    store = harvest(model)
    tokens = store.tokens.long()
    with torch.no_grad():
        hidden = model(input_ids=tokens, output_hidden_states=True).hidden_states[1]
    contexts, positions = store.place(torch.arange(len(store)))
    torch.testing.assert_close(stored(store).x, hidden[contexts, positions])


def test_texts_are_packed_with_separators_which_are_left_out():
    store = harvest(tiny_llama())
    tokenizer = tiny_tokenizer()
    stream = [i for t in texts() for i in [*tokenizer(t)["input_ids"], END]]
    windows = len(stream) // 16
    assert store.tokens.flatten().tolist() == stream[: windows * 16]
    special = stream[: windows * 16].count(END)
    assert len(store) == windows * 16 - special and store.report.special == special
    contexts, positions = store.place(torch.arange(len(store)))
    assert END not in store.tokens[contexts, positions]


def test_special_tokens_are_kept_if_asked_or_named():
    everything = harvest(tiny_llama(), skip_special=False)
    assert len(everything) == everything.tokens.numel() and everything.report.special == 0
    other = harvest(tiny_llama(), skip_special=[12])
    assert len(other) == int((other.tokens != 12).sum()) and other.info["special_ids"] == [12]


def test_an_unknown_word_is_text():
    tokenizer = tiny_tokenizer()
    assert special_ids(tokenizer) == (0, 1, 2)
    tokenizer.unk_token = "</s>"  # as in GPT-2, where it has another office
    assert special_ids(tokenizer) == (0, 1, 2)


def test_contexts_can_begin_with_bos_and_lose_their_first_positions():
    store = harvest(tiny_llama(), prepend_bos=True)
    assert bool((store.tokens[:, 0] == 1).all()) and store.place(torch.tensor([0]))[1] == 1
    later = harvest(tiny_llama(), skip_first=3)
    assert int(later.place(torch.arange(len(later)))[1].min()) == 3


def test_the_context_is_that_of_the_tokens_given():
    store = harvest(tiny_llama(), **GIVEN, tokens=IDS, skip_first=17)
    assert store.info["context"] == 20 and store.info["prepend_bos"] is False
    assert store.place(torch.arange(6))[1].tolist() == [17, 18, 19] * 2
    batches = [IDS, IDS[:, :9]]
    assert harvest(tiny_llama(), **GIVEN, batches=batches).info["context"] == 20
    assert harvest(tiny_llama(), **GIVEN, batches=[IDS[:, :9]]).info["context"] == 9
    with pytest.raises(InvalidValue, match="context=128 is longer than the 64 tokens"):
        harvest(tiny_llama(), context=None)
    same = harvest(tiny_llama(), texts=None, context=20, tokens=IDS)
    assert len(same) == 40


def test_it_is_known_whether_contexts_begin_with_bos(tmp_path):
    assert harvest(tiny_llama(), prepend_bos=True).info["prepend_bos"] is True
    assert harvest(tiny_llama()).info["prepend_bos"] is False
    begun = torch.cat([torch.ones(2, 1).long(), IDS], dim=1)
    assert harvest(tiny_llama(), **GIVEN, tokens=begun).info["prepend_bos"] is True
    without = ActivationStore(tiny_llama(), at=HOOK, tokens=begun, path=tmp_path)
    assert without.info["prepend_bos"] is None and without.info["context"] == 21
    assert ActivationStore.open(tmp_path).info == without.info


def test_a_tokenizer_without_bos_has_none_to_leave_out():
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = None
    assert len(harvest(tiny_llama(), tokenizer=tokenizer, prepend_bos=False)) > 0
    with pytest.raises(InvalidValue, match="has no BOS"):
        harvest(tiny_llama(), tokenizer=tokenizer, prepend_bos=True)


def test_padding_in_tokens_is_told_by_the_tokenizer():
    ids = IDS.clone()
    ids[1, 12:] = 0  # <pad>
    store = harvest(tiny_llama(), **GIVEN, tokens=ids, skip_special=False)
    assert len(store) == 32 and store.report.padding == 8
    assert store.tokens[1].tolist() == [*ids[1, :12].tolist(), *[-1] * 8]
    mask = (ids != 0).long()
    with torch.no_grad():
        output = tiny_llama()(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    torch.testing.assert_close(stored(store).x, output.hidden_states[1][mask.bool()])


def test_padding_that_is_not_known_is_said():
    unknown = ActivationStore(tiny_llama(), at=HOOK, tokens=IDS, skip_special=False)
    assert "which of the tokens are padding" in str(unknown.report)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    ids = IDS.clone()
    assert not harvest(tiny_llama(), tokenizer=tokenizer, **GIVEN, tokens=ids).report.remarks
    ids[:, -2:] = END
    said = harvest(tiny_llama(), tokenizer=tokenizer, **GIVEN, tokens=ids).report
    assert "pads with token 2, which has another office too" in str(said)


def test_padding_is_left_out():
    model = tiny_bert()
    ids = torch.randint(3, VOCAB, (3, 8))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    store = ActivationStore(
        model, at="encoder.layer.0", batches=[{"input_ids": ids, "attention_mask": mask}]
    )
    assert len(store) == 21 and store.report.padding == 3
    assert store.tokens[1].tolist() == [*ids[1, :5].tolist(), -1, -1, -1]
    with torch.no_grad():
        hidden = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    torch.testing.assert_close(stored(store).x, hidden.hidden_states[1][mask.bool()])


def test_without_a_tokenizer_the_report_says_that_nothing_special_is_known():
    store = ActivationStore(tiny_llama(), at=HOOK, tokens=torch.full((2, 5), 9))
    assert "none was left out" in str(store.report) and len(store) == 10
    assert "12 activations" not in str(store.report) and "10 activations" in str(store.report)


def test_batches_of_different_length_make_one_store():
    ids = [torch.randint(3, VOCAB, (2, n)) for n in (6, 9)]
    store = ActivationStore(tiny_llama(), at=HOOK, batches=[{"input_ids": part} for part in ids])
    assert len(store) == 30 and store.tokens.shape == (4, 9)
    assert store.tokens[0].tolist() == [*ids[0][0].tolist(), -1, -1, -1]


def test_any_module_on_any_tensor():
    model, x = tiny_mlp(), torch.randn(10, 12)
    store = ActivationStore(model, at="1", batches=x.split(4))
    torch.testing.assert_close(stored(store).x, model[1](model[0](x)))
    assert store.tokens is None and store.place(torch.tensor([7])) == (7, 0)
    assert ActivationStore(model, at="2.input", batches=[x]).d_in == 16


def test_flattened_activations_find_their_tokens():
    model = tiny_opt()
    batch = batches_for(model)[0]
    store = ActivationStore(model, at="blocks.0.hook_mlp_out", batches=[batch])
    assert len(store) == 36 and store.place(torch.tensor([13])) == (1, 1)


def test_the_place_of_a_pooled_output_is_one_row_for_a_context():
    batch = batches_for(tiny_bert())[0]
    store = ActivationStore(tiny_bert(), at="pooler", batches=[batch])
    assert len(store) == 3 and store.place(torch.tensor([2])) == (2, 0)


def test_a_transcoder_gets_what_it_reads_and_what_it_shall_write():
    model = tiny_llama()
    store = harvest(model, at="model.layers.1.mlp.input", to="blocks.1.hook_mlp_out")
    found = stored(store)
    with torch.no_grad():
        torch.testing.assert_close(model.model.layers[1].mlp(found.x), found.target)
    assert store.info["hook_out"] == "blocks.1.hook_mlp_out" and store.d_out == 32


def test_several_places_in_one_pass_are_as_one_by_one(tmp_path):
    names = [HOOK, "model.layers.1.mlp.down_proj.input"]
    options = {"texts": texts(), "tokenizer": tiny_tokenizer(), "context": 16}
    many = ActivationStore.harvest_many(tiny_llama(), at=names, path=tmp_path, **options)
    for name in names:
        single = ActivationStore(tiny_llama(), at=name, **options)
        torch.testing.assert_close(stored(many[name]).x, stored(single).x)
    assert [many[name].d_in for name in names] == [32, 64]
    with pytest.raises(StoreError, match=r"It has the stores blocks\.0\.hook_resid_post, model"):
        ActivationStore.open(tmp_path)
    again = ActivationStore.open(tmp_path / HOOK)
    torch.testing.assert_close(stored(again).x, stored(many[HOOK]).x)


def test_the_forward_pass_ends_where_the_place_is():
    model = tiny_llama()
    calls = []
    model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    harvest(model)
    assert len(calls) == 1  # the first batch runs through, to see that each place is met once


def test_the_model_is_left_as_it_was():
    model = tiny_llama()
    model.train()
    harvest(model)
    assert model.training and model.model.layers[0].training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_takes_half_the_room(tmp_path, dtype):
    whole = harvest(tiny_llama(), path=tmp_path / "whole")
    half = harvest(tiny_llama(), path=tmp_path / "half", dtype=dtype)
    assert torch.equal(stored(half).x, stored(whole).x.to(dtype).float())
    sizes = [(tmp_path / n / "x-00000.bin").stat().st_size for n in ("whole", "half")]
    assert sizes[0] == 2 * sizes[1] == len(whole) * 32 * 4


def test_a_model_in_bfloat16_is_read_as_it_is():
    store = harvest(tiny_llama().bfloat16())
    assert stored(store).x.dtype == torch.float32 and store.report.non_finite == 0


def test_rows_are_an_exact_limit_and_a_short_text_is_said():
    store = harvest(tiny_llama(), rows=50)
    assert len(store) == 50 and store.contexts == 4 and not store.report.remarks
    assert store.report.special == int((store.tokens == END).sum()) > 0
    torch.testing.assert_close(stored(store).x, harvest(tiny_llama()).rows(torch.arange(50)).x)
    short = harvest(tiny_llama(), rows=100_000)
    assert f"100,000 rows were asked for, the text gave {len(short):,}" in str(short.report)


def test_texts_may_be_an_iterator_or_a_file(tmp_path):
    expected = harvest(tiny_llama())
    assert torch.equal(harvest(tiny_llama(), texts=iter(texts())).tokens, expected.tokens)
    file = tmp_path / "text.txt"
    file.write_text("\n".join(texts()))
    for path in (file, str(file)):
        assert harvest(tiny_llama(), texts=path).tokens[0].equal(expected.tokens[0])


def test_the_tokenizer_is_found_where_the_model_comes_from(tmp_path):
    from transformers import AutoModelForCausalLM

    save_directory(tiny_llama(), tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    store = harvest(model, tokenizer=None)
    assert store.info["model"] == str(tmp_path) and store.info["hook"] == HOOK == store.at
    assert torch.equal(store.tokens, harvest(tiny_llama()).tokens)
    with pytest.raises(InvalidValue, match="tokenizer="):
        harvest(tiny_gpt2(), tokenizer=None)


def test_progress_comes_from_nothing_to_all():
    told = []
    store = harvest(tiny_llama(), progress=lambda *news: told.append(news))
    done = [rows for _, rows, _ in told]
    assert done == sorted(done) and done[-1] == len(store) == told[-1][2]
    assert all(total >= rows for _, rows, total in told)


class Broken(nn.Module):
    """Makes NaN of one token."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, 4)
        self.embed.weight.data[30] = float("nan")

    def forward(self, ids):
        return self.embed(ids)


def test_values_that_are_not_finite_name_their_contexts_and_texts():
    options = {"at": "embed", "texts": ["1 2 3 4", "5 18 18 6"], "tokenizer": tiny_tokenizer()}
    with pytest.raises(NonFinite) as caught:
        ActivationStore(Broken(), context=5, **options)
    message = str(caught.value)
    assert "2 of 10 rows in a batch have NaN or infinite activations at embed.output" in message
    assert "context 1 (in text 1), positions [1, 2], '5 18 18 6 </s>'" in message
    assert "skip_non_finite=True" in message
    store = ActivationStore(Broken(), context=5, skip_non_finite=True, **options)
    assert len(store) == 6 and store.report.non_finite == 2
    assert "2 not finite" in str(store.report)


def test_float16_that_overflows_says_what_to_do():
    model = nn.Sequential(nn.Identity())
    with pytest.raises(NonFinite, match=r"float16 holds at most 65,504"):
        ActivationStore(model, at="0", batches=[torch.full((2, 3), 1e5)], dtype=torch.float16)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.layer(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": "model.layers"}, "is not called when the model runs"),
        ({"at": "model.embed_tokens.input"}, r"activations of type torch\.int64"),
        ({"context": 100}, "longer than the 64 tokens"),
        ({"texts": ["1 2 3"]}, "too few for one context of 16"),
        ({"texts": "no such file"}, "one string and no file"),
        ({"texts": [3]}, "text 0 is of type int"),
        ({"tokens": torch.ones(2, 3)}, "texts and tokens was given"),
        ({"texts": None}, "nothing was given"),
        ({"texts": None, "tokens": torch.ones(2, 3)}, "tokens must be whole numbers"),
        ({"texts": None, "context": None, "batches": ["words"]}, "batch 0 is of type str"),
        ({"rows": 0}, "rows=0"),
        ({"skip_first": 16}, "skip_first=16"),
        ({"dtype": torch.int8}, r"dtype=torch\.int8"),
        ({"skip_special": range(VOCAB)}, "no rows: there was nothing to read, or all"),
        ({"texts": None, "context": None, "batches": []}, "no rows: there was nothing to read"),
        ({"texts": []}, "the text has 0 tokens"),
        ({"texts": None, "tokens": IDS}, r"context=16 .* the contexts given have 20 tokens"),
        ({"texts": None, "batches": [IDS]}, "context=16 is for texts"),
        ({**GIVEN, "tokens": IDS, "prepend_bos": True}, "prepend_bos=True is for texts"),
        ({**GIVEN, "batches": [IDS], "prepend_bos": False}, "prepend_bos=False is for texts"),
        ({**GIVEN, "tokens": IDS, "skip_first": 20}, "skip_first=20 is not allowed: give 0 to 19"),
        ({**GIVEN, "batches": [IDS], "skip_first": -1}, "skip_first=-1 .* give 0 or more"),
        ({**GIVEN, "batches": [IDS], "skip_first": 20}, "no rows"),
        ({"texts": None, "tokens": torch.ones(0, 3).long()}, "tokens must be whole numbers"),
    ],
)
def test_what_cannot_be_harvested_is_refused(options, message):
    with pytest.raises(InvalidValue, match=message):
        harvest(tiny_llama(), **options)


def test_a_module_that_runs_twice_is_no_place():
    with pytest.raises(InvalidValue, match="called 2 times"):
        ActivationStore(Twice(), at="layer", batches=[torch.ones(2, 4)])


def test_an_unknown_hook_point_has_the_closest_names():
    with pytest.raises(UnknownName, match=r"model\.layers\.0"):
        harvest(tiny_llama(), at="model.layer.0")


def test_places_must_agree_in_their_positions():
    model, batch = tiny_bert(), batches_for(tiny_bert())[0]
    with pytest.raises(InvalidValue, match=r"the places differ .* pooler.output \(3, 1\)"):
        ActivationStore(model, at="encoder.layer.0", to="pooler", batches=[batch])
    with pytest.raises(InvalidValue, match="none twice"):
        ActivationStore.harvest_many(model, at=["pooler", "pooler.output"], batches=[batch])


class Turned(nn.Module):
    """Has the positions first inside."""

    def __init__(self):
        super().__init__()
        self.embed, self.layer = nn.Embedding(VOCAB, 4), nn.Identity()

    def forward(self, ids):
        return self.layer(self.embed(ids).transpose(0, 1))


def test_a_place_without_a_position_for_each_token_is_refused():
    tokens = torch.randint(3, VOCAB, (2, 5))
    assert len(ActivationStore(Turned(), at="embed", tokens=tokens)) == 10
    with pytest.raises(InvalidValue, match=r"\(5, 2\), and the tokens are \(2, 5\)"):
        ActivationStore(Turned(), at="layer", tokens=tokens)


def test_pictures_are_no_sequence():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    with pytest.raises(InvalidValue, match="no sequence of vectors"):
        ActivationStore(model, at="0", batches=[torch.ones(2, 3, 5, 5)])


def test_each_batch_is_read_by_the_model_once(tmp_path):
    model = tiny_llama()
    calls = []
    model.model.embed_tokens.register_forward_hook(lambda *_: calls.append(1))
    store = harvest(model, path=tmp_path, shard_bytes=20_000)
    assert len(list(tmp_path.glob("x-*"))) > 2
    assert len(calls) == -(-store.contexts // 4)
