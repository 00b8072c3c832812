"""`measure_speed` on tiny models whose layers are timed by script: no test depends on a clock."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from tests.model.runtime.scripted import scripted
from tests.models import (
    ARCHITECTURES,
    batches_for,
    save_directory,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
    tiny_tokenizer,
    tiny_vit,
)

from sparsecraft.core.errors import CheckpointError, InvalidValue
from sparsecraft.lab import rounds
from sparsecraft.lab.decoding import decode_in_turns, greedy
from sparsecraft.lab.measures.perplexity import perplexity, tokenize
from sparsecraft.lab.rounds import Rounds, forward_in_turns, verdict
from sparsecraft.lab.speed import SpeedSettings, measure_speed
from sparsecraft.lab.speed_forms import as_decoded, twin, without_gates
from sparsecraft.lab.speed_layers import fastest, layer_groups
from sparsecraft.lab.speed_quality import decoder_quality
from sparsecraft.lab.speed_words import speed_line, verdicts
from sparsecraft.model.checkpoints import save
from sparsecraft.model.gating import gate, installed_gates
from sparsecraft.model.pruning import prune
from sparsecraft.model.runtime import pack

QUICK = SpeedSettings(rounds=3, tokens=4, batch_sizes=(1, 2))
TEXT = "the cat sat on a mat . a cat , 3 4 5 the mat " * 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("speed")


@pytest.fixture(scope="module")
def text(folder):
    path = folder / "held-out.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def dense(folder):
    return save_directory(tiny_llama(), folder / "dense")


@pytest.fixture(scope="module")
def pruned(folder):
    model = tiny_llama()
    report = prune(model, "magnitude", sparsity=0.5)
    path = folder / "pruned"
    save(model, path, mask=report.mask, settings={"pruning": report.to_json()})
    tiny_tokenizer().save_pretrained(path)
    return path


def gated_llama():
    model = tiny_llama()
    gate(model, "teal", sparsity=0.5, calibration=batches_for(model, count=4))
    return model


@pytest.fixture(scope="module")
def gated(folder):
    path = folder / "gated"
    save(gated_llama(), path, form="augmented")
    tiny_tokenizer().save_pretrained(path)
    return path


def test_a_model_that_nothing_makes_faster_says_so(dense):
    report = measure_speed(dense, QUICK, measure=scripted())
    assert {choice.chosen for choice in report.record.choices} == {"torch float32"}
    assert list(report.forward) == [1, 2]
    assert list(report.forward[1]) == ["dense", "packed"]
    said = verdicts(report)
    assert any(line.startswith("no layer computes sparsely") for line in said)
    assert said[-1] == "quality was not measured: give held-out text, --text FILE."
    assert report.origin == "neither pruned nor gated"
    assert report.decoding == {}


def test_a_pruned_model_stands_beside_the_best_dense_forms(pruned, text):
    settings = replace(QUICK, prompt="the cat", text=text)
    report = measure_speed(pruned, settings, measure=scripted("bitmask float32@1", "dense int8@2"))
    chosen = {(choice.rows, choice.chosen) for choice in report.record.choices}
    assert {(1, "bitmask float32"), (2, "dense int8")} <= chosen
    assert list(report.decoding) == ["dense", "best dense", "packed"]
    assert report.written["packed"] == report.written["dense"]
    assert report.origin == "pruned by magnitude to 50.0% zeros"
    assert report.kind == "decoder"
    assert report.quality is not None
    assert report.quality.change == pytest.approx(0, abs=1e-5)
    assert report.quality.kl == pytest.approx(0, abs=1e-6)
    assert any("from sparsity alone" in line for line in verdicts(report))


def test_what_pruning_lost_is_seen_beside_the_original(pruned, dense, text):
    settings = replace(QUICK, text=text, dense=dense)
    quality = measure_speed(pruned, settings, measure=scripted()).quality
    ids = tokenize(tiny_tokenizer(), TEXT)
    model = tiny_llama()
    assert quality.dense == pytest.approx(perplexity(model, ids), rel=1e-6)
    prune(model, "magnitude", sparsity=0.5)
    assert quality.here == pytest.approx(perplexity(model, ids), rel=1e-6)
    assert quality.change == pytest.approx(quality.here / quality.dense - 1, rel=1e-9)
    assert quality.low < quality.change < quality.high
    assert quality.kl > 0
    assert (quality.windows, quality.window) == (len(ids) // 64, 64)


def test_the_quality_of_a_gated_model_is_that_of_its_decoding(gated, text):
    """Packed, a window is computed whole; its loss would hide what gating costs."""
    settings = replace(QUICK, text=text, prompt="the cat")
    report = measure_speed(gated, settings, measure=scripted("gated float32"))
    assert any(choice.chosen == "gated float32" for choice in report.record.choices)
    model = gated_llama()
    for module, each in ((m, g) for m in model.modules() for g in m._forward_pre_hooks.values()):
        assert module is not None
        if hasattr(each, "gate"):
            each.gate = replace(each.gate, prefill=0.99)
    ids = tokenize(tiny_tokenizer(), TEXT)
    assert report.quality.here == pytest.approx(perplexity(model, ids), rel=1e-5)
    assert report.quality.dense == pytest.approx(perplexity(tiny_llama(), ids), rel=1e-5)
    assert report.quality.here != pytest.approx(report.quality.dense, rel=1e-3)
    assert any("gates act on every token but the first hundredth" in note for note in report.notes)
    assert not any("are not used" in note for note in report.notes)
    assert "gated by teal, 50.0% asked at 14 places" in report.origin


def test_gates_that_are_not_used_are_counted(gated, text):
    report = measure_speed(gated, replace(QUICK, text=text), measure=scripted())
    assert report.quality.change == pytest.approx(0, abs=1e-6)
    assert any("14 of 14 gates are not used, because dense" in note for note in report.notes)
    assert not any("first hundredth" in note for note in report.notes)


def test_as_decoded_computes_what_single_tokens_get():
    """Token by token through the packed model, or all at once through the other: the same."""
    model = gated_llama()
    packed = pack(twin(model), batch_sizes=(1,), measure=scripted("gated int8", "dense int8"))
    whole = as_decoded(model, packed.model)
    ids = torch.tensor([[5, 9, 11, 3, 7, 8]])
    with torch.no_grad():
        state, singly = None, []
        for token in ids.split(1, dim=1):
            output = packed.model(input_ids=token, past_key_values=state, use_cache=True)
            state = output.past_key_values
            singly.append(output.logits)
        for each in [m for m in whole.modules() for m in m._forward_pre_hooks.values()]:
            if hasattr(each, "gate"):
                each.gate = replace(each.gate, prefill=1.0)
        together = whole(ids).logits
    torch.testing.assert_close(torch.cat(singly, 1), together, rtol=1e-3, atol=1e-4)


def test_gates_that_the_packed_model_does_not_use_are_not_judged():
    model = gated_llama()
    packed = pack(twin(model), batch_sizes=(1,), measure=scripted("dense float32"))
    whole = as_decoded(model, packed.model)
    assert len(installed_gates(model)) == 14
    assert installed_gates(whole) == {}
    ids = torch.tensor([[5, 9, 11, 3]])
    torch.testing.assert_close(whole(ids).logits, tiny_llama()(ids).logits)


def test_a_twin_shares_weights_and_nothing_else():
    model = gated_llama()
    other = without_gates(model)
    assert installed_gates(other) == {}
    assert len(installed_gates(model)) == 14
    mine, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    assert all(theirs[name] is parameter for name, parameter in mine.items())
    assert not {id(m) for m in model.modules()} & {id(m) for m in other.modules()}


def test_an_encoder_is_timed_whole_and_compared_by_cosine(folder, text):
    path = save_directory(tiny_bert(), folder / "bert")
    settings = replace(QUICK, text=text, window=16)
    report = measure_speed(path, settings, measure=scripted("dense int8"))
    assert report.kind == "encoder"
    assert {choice.rows for choice in report.record.choices} == {64, 128}
    assert report.quality.metric == "cosine to dense"
    assert 0.99 < report.quality.here < 1
    assert report.quality.change == pytest.approx(1 - report.quality.here)


def test_an_encoder_takes_no_prompt(folder):
    path = save_directory(tiny_bert(), folder / "bert-without-prompt")
    with pytest.raises(InvalidValue, match=r"an encoder: it reads and does not write.*--prompt"):
        measure_speed(path, replace(QUICK, prompt="the cat"))


@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - {"vit"}))
def test_every_architecture_is_timed(folder, name):
    path = folder / f"architecture-{name}"
    ARCHITECTURES[name]().save_pretrained(path)
    settings = replace(QUICK, batch_sizes=(1,))
    report = measure_speed(path, settings, measure=scripted("dense int8"))
    assert report.kind == ("encoder" if name == "bert" else "decoder")
    assert "dense int8" in {choice.chosen for choice in report.record.choices}
    assert len(report.forward[1]["packed"].values) == 3


def test_images_are_timed_too(folder):
    tiny_vit().save_pretrained(folder / "vit")
    report = measure_speed(folder / "vit", replace(QUICK, batch_sizes=(1,)), measure=scripted())
    assert report.kind == "encoder"
    assert {choice.rows for choice in report.record.choices} == {16}


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_decoding_is_what_generate_writes(make):
    model = make()
    prompt = torch.tensor([[4, 5, 6]])
    ours = greedy(model, prompt, 8).ids
    theirs = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, min_new_tokens=8,
        do_sample=False, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    assert ours.tolist() == theirs[:, 3:].tolist()


def test_decoding_takes_turns_and_tells_progress():
    told = []
    found = decode_in_turns(
        {"dense": tiny_llama(), "other": tiny_llama(seed=1)},
        torch.tensor([[4, 5], [6, 7]]),
        3,
        rounds=3,
        progress=lambda *done: told.append(done),
    )
    assert told == [(i, 6) for i in range(1, 7)]
    assert found["dense"].ids.shape == (2, 3)
    assert len(found["other"].rate.values) == 3
    assert found["other"].rate.over(found["dense"].rate).median > 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"prompt": "the cat", "tokens": 63},
            "2 tokens and 63 new ones exceed.* 64; ask for .* 62",
        ),
        ({"prompt": "the " * 70}, "give a shorter prompt"),
        ({"prompt": "the", "tokens": 1}, "tokens=1 is too few"),
        ({"prompt": ""}, "the prompt has no tokens"),
        ({"rounds": 2}, "rounds=2 is too few"),
        ({"threads": 0}, "threads=0"),
        ({"dtype": "float16"}, "dtype='float16' is not known"),
        ({"text": "absent.txt"}, "absent.txt cannot be read"),
    ],
)
def test_settings_that_do_not_fit_are_refused(dense, changes, words):
    with pytest.raises(InvalidValue, match=words):
        measure_speed(dense, replace(QUICK, **changes), measure=scripted())


def test_a_short_text_and_another_dense_model_are_refused(dense, folder):
    short = folder / "short.txt"
    short.write_text("the cat sat")
    with pytest.raises(InvalidValue, match="has 3 tokens, fewer than one window of 64"):
        measure_speed(dense, replace(QUICK, text=short))
    other = save_directory(tiny_llama(vocab_size=80), folder / "other")
    with pytest.raises(InvalidValue, match="is not the original of"):
        measure_speed(dense, replace(QUICK, dense=other))


def test_a_missing_tokenizer_and_a_missing_model_are_named(folder):
    tiny_llama().save_pretrained(folder / "bare")
    with pytest.raises(InvalidValue, match="has no tokenizer, so prompt and text cannot be read"):
        measure_speed(folder / "bare", replace(QUICK, prompt="the"))
    with pytest.raises(CheckpointError, match="there is no directory"):
        measure_speed(folder / "absent", QUICK)


def test_the_fastest_within_the_tolerance_of_each_kind():
    model = tiny_llama()
    prune(model, "magnitude", sparsity=0.5)
    record = pack(model, measure=scripted("csr float32@1", "dense int8@1"), tolerance=1e-6).record
    choice = record.of("model.layers.0.mlp.up_proj")[0]
    assert fastest(choice, sparse=True, tolerance=1e-6).name == "csr float32"
    assert fastest(choice, sparse=False, tolerance=0.02).name == "dense int8"
    assert fastest(choice, sparse=False, tolerance=1e-6).name != "dense int8"
    head = record.of("lm_head")[0]
    assert fastest(head, sparse=True, tolerance=0.02) is None


def test_like_layers_stand_together_and_every_layer_alone():
    model = tiny_llama()
    prune(model, "magnitude", sparsity=0.5)
    record = pack(model, batch_sizes=(1,), measure=scripted("csr float32")).record
    groups = {group.name: group for group in layer_groups(record)}
    up = groups["model.layers.*.mlp.up_proj"]
    assert (up.count, up.rows, up.density, up.kept) == (2, 1, 0.5, None)
    assert (up.as_it_was, up.sparse, up.chosen) == (1000, ("csr float32", 500), "csr float32")
    assert up.dense[1] == 1000
    assert groups["lm_head"].sparse is None
    assert len(groups) == 8
    assert len(layer_groups(record, every=True)) == 15


def test_words_follow_the_rounds():
    even, fast, mixed = Rounds((1.0,) * 3), Rounds((2.0, 1.5, 1.8)), Rounds((2.0, 0.9, 1.8))
    assert [verdict(each.over(even)) for each in (even, fast, mixed)] == ["none", "faster", "none"]
    assert verdict(even.over(fast)) == "slower"
    said = speed_line("decoding", {"dense": even, "packed": fast})
    assert said == "decoding: 1.80x as fast as dense [1.50, 2.00]."
    said = speed_line("decoding", {"dense": fast, "packed": even})
    assert said.startswith("decoding: no speed-up here, slower than dense: 0.56x")


def test_forward_passes_take_turns_in_alternating_order(monkeypatch):
    monkeypatch.setattr(rounds, "repetitions", lambda seconds: 2)
    calls = []

    class Named(torch.nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name = name

        def forward(self, x):
            calls.append(self.name)
            return x

    found = forward_in_turns({"a": Named("a"), "b": Named("b")}, {"x": torch.ones(1)}, rounds=3)
    assert "".join(calls) == "aabb" + "bbaa" + "aabb" + "bbaa"
    assert len(found["a"].values) == 3


def test_one_window_gives_no_interval():
    model = tiny_llama()
    found = decoder_quality(model, tiny_llama(seed=1), torch.ones(1, 8, dtype=torch.long), "x")
    assert found.low is None
    assert found.high is None


def test_threads_are_given_back(dense):
    before = torch.get_num_threads()
    with pytest.raises(InvalidValue):
        measure_speed(dense, replace(QUICK, threads=2, prompt=""), measure=scripted())
    assert torch.get_num_threads() == before


def test_plain_values_hold_everything(pruned, text):
    settings = replace(QUICK, prompt="the cat", text=text)
    report = measure_speed(pruned, settings, measure=scripted("bitmask float32"))
    found = json.loads(json.dumps(report.to_json()))
    assert found["decoding"]["packed"]["text"] == report.written["packed"]
    assert len(found["forward_ms"]["2"]["dense"]["rounds"]) == 3
    assert found["verdict"] == verdicts(report)
    assert found["record"]["choices"][0]["chosen"] == "bitmask float32"
    assert found["environment"]["machine"]["dtype"] == "float32"
