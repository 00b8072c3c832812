"""Activations that the model makes as they are read."""

import itertools

import pytest
import torch
from tests.models import tiny_bert, tiny_llama, tiny_tokenizer
from torch import nn

from sparsecraft.core.errors import InvalidValue, NonFinite
from sparsecraft.methods.codes.batch_topk import BatchTopK
from sparsecraft.methods.codes.topk import TopK
from sparsecraft.model.activation_store import ActivationStore, LiveActivations
from sparsecraft.model.sae import SAETraining, SparseAutoencoder

HOOK = "blocks.0.hook_resid_post"
TEXTS = [" ".join(str((i * 7 + j * j) % 50) for j in range(30)) for i in range(40)]
READ = {"at": HOOK, "texts": TEXTS, "context": 16, "batch_size": 2}


def live(**options):
    sizes = {"buffer_rows": 128, "kept_rows": 200}
    given = {**READ, "tokenizer": tiny_tokenizer(), **sizes, **options}
    return LiveActivations(tiny_llama(), **given)


def stored(**options):
    return ActivationStore(tiny_llama(), **{**READ, "tokenizer": tiny_tokenizer(), **options})


def every(store):
    return store.rows(torch.arange(len(store)))


def drawn(reader, rows):
    """Returns the batches of at least so many rows."""
    return [next(reader) for _ in range(-(-rows // reader.batch))]


def test_an_epoch_has_the_rows_of_a_stored_one():
    rows, source = every(stored(texts=TEXTS[:15])).x, live(texts=TEXTS[:15])
    epoch = list(itertools.takewhile(lambda window: window.epoch == 0, source.windows()))
    assert sum(window.rows for window in epoch) == len(rows)
    batches = drawn(source.reader(20), 4 * len(rows))
    index = torch.cat([batch.index for batch in batches])
    x = torch.cat([batch.x for batch in batches])[index // 2**32 < len(epoch)]
    order = index[index // 2**32 < len(epoch)].argsort()  # as in the text
    torch.testing.assert_close(x[order], rows)


def test_what_goes_in_comes_out_once():
    source = live()
    reader = source.reader(20, seed=3)
    batches = drawn(reader, 600)
    read = torch.cat([batch.index for batch in batches])
    numbers, rows = reader._buffer.origins(reader._buffer.held())
    left = numbers * 2**32 + rows
    windows = list(itertools.islice(source.windows(), 100))
    until = int(torch.cat([read, left]).max()) // 2**32
    put = torch.cat([w.number * 2**32 + torch.arange(w.rows) for w in windows[: until + 1]])
    assert torch.equal(torch.cat([read, left]).sort().values, put.sort().values)


def test_gradients_and_targets_come_along():
    options = {"to": "model.layers.1.mlp", "gradients": True}
    rows = every(stored(**options))
    starts, seen = {}, 0
    for window in itertools.islice(live().windows(), 10):
        starts[window.number], seen = seen, seen + window.rows
    reader = live(**options).reader(20)
    with torch.no_grad():
        batch = next(reader)
    numbers = [starts[int(i) // 2**32] + int(i) % 2**32 for i in batch.index]
    torch.testing.assert_close(batch.gradient, rows.gradient[numbers])
    torch.testing.assert_close(batch.target, rows.target[numbers])


def test_held_out_contexts_never_come():
    train, held_out = live().split(0.1, seed=0)
    assert 0 < held_out.contexts <= train.contexts and train.at == HOOK
    never = every(held_out).x
    seen = torch.cat([batch.x for batch in drawn(train.reader(20), 2 * len(stored()))])
    tokens = torch.cat([held_out.tokens, train.tokens])
    assert torch.equal(tokens, stored(rows=200).tokens)
    unique = every(stored()).x
    alone = torch.cdist(never, unique[len(never) :]).min(dim=1).values > 1e-3
    assert int(alone.sum()) > 50  # rows that no later context repeats
    assert float(torch.cdist(never[alone], seen).min()) > 1e-3
    again, more = train.split()
    assert more.contexts == train.contexts // 2 and again._held_out > held_out.contexts


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_a_reader_goes_on_in_the_middle_of_a_buffer(steps):
    first = live(gradients=True).reader(20, seed=5)
    for _ in range(steps):
        next(first)
    state = first.state_dict()
    second = live(gradients=True).reader(20, seed=5)
    next(second)
    second.load_state_dict(state)
    for _ in range(12):
        a, b = next(first), next(second)
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.x, b.x) and torch.equal(a.gradient, b.gradient)
    assert second.step == first.step and second.epoch == first.epoch


def test_going_on_runs_the_model_only_on_what_the_buffer_held():
    reader = live().reader(20)
    for _ in range(30):
        next(reader)
    other = live()
    calls = []
    other._model.model.embed_tokens.register_forward_hook(lambda *_: calls.append(1))
    again = other.reader(20)
    again.load_state_dict(reader.state_dict())
    numbers, _ = reader._buffer.origins(reader._buffer.held())
    assert len(calls) == numbers.unique().numel() < int(numbers.max()) + 1


def test_other_seeds_buffers_and_ranks_are_no_place_to_go_on():
    state = live().reader(20).state_dict()
    for other in (live().reader(20, seed=1), live(buffer_rows=130).reader(20), live().reader(10)):
        with pytest.raises(InvalidValue, match="the saved reader has"):
            other.load_state_dict(state)


def test_batches_mix_many_contexts_and_seeds_differ():
    first, other = live().reader(30, seed=0), live().reader(30, seed=1)
    batch = next(first)
    assert (batch.index // 2**32).unique().numel() >= 4  # of those in the buffer
    assert not torch.equal(batch.index, next(other).index)
    assert torch.equal(batch.index, next(live().reader(30, seed=0)).index)


def test_the_buffer_never_holds_more_than_it_may():
    reader = live(buffer_rows=90).reader(20)
    for _ in range(60):
        next(reader)
        assert len(reader._buffer) <= 90
        assert all(values.shape[0] == 90 for values in reader._values.values())
        assert len(reader._buffer) >= 90 // 2 - 20


def test_ranks_read_different_batches_for_ever():
    readers = [live().reader(20, rank=rank, world=2) for rank in (0, 1)]
    numbers = []
    for reader in readers:
        index = torch.cat([batch.index for batch in drawn(reader, 2000)])
        numbers.append(set((index // 2**32).tolist()))
    assert not numbers[0] & numbers[1]
    assert readers[0].epoch >= 1 and readers[0].position == readers[1].position


def test_the_model_is_left_as_it_was():
    source = live(gradients=True)
    source._model.train()
    next(source.reader(20))
    assert source._model.training and all(p.requires_grad for p in source._model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in source._model.modules())
    assert all(p.grad is None for p in source._model.parameters())


@pytest.mark.parametrize("activation", [TopK(k=4), BatchTopK(k=4)])
def test_an_autoencoder_is_as_good_as_from_a_store(activation):
    training = SAETraining(steps=150, batch=64, learning_rate=3e-3)
    found = []
    for data in (stored(), live(buffer_rows=400)):
        sae = SparseAutoencoder(32, 64, activation).fit(data, training)
        found.append(1 - sae.score(every(stored()).x))
        assert sae.info["hook"] == HOOK and sae.report.measured_on == "held-out rows"
    from_store, from_stream = found
    assert from_store < 0.2 and from_stream < 1.05 * from_store


def test_a_training_goes_on_bit_by_bit(tmp_path):
    training = SAETraining(steps=20, batch=20, checkpoint_every=5, learning_rate=1e-3)
    whole = SparseAutoencoder(32, 64, TopK(k=4)).fit(live(), training)

    class Stop(Exception):
        pass

    def stop(stage, done, steps):
        if done == 12:
            raise Stop

    with pytest.raises(Stop):
        SparseAutoencoder(32, 64, TopK(k=4)).fit(
            live(), training, directory=tmp_path, progress=stop
        )
    went_on = SparseAutoencoder(32, 64, TopK(k=4)).fit(live(), training, directory=tmp_path)
    assert went_on.report.resumed_from == 10
    assert torch.equal(went_on.W_dec, whole.W_dec) and torch.equal(went_on.W_enc, whole.W_enc)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"texts": iter(TEXTS)}, "texts is an iterator, which can be read only once"),
        ({"rows": 5}, "rows is for what is stored"),
        ({"skip_non_finite": True}, "skip_non_finite is for what is stored"),
        ({"buffer_rows": 1}, "buffer_rows=1"),
    ],
)
def test_what_cannot_be_live_is_refused(options, message):
    with pytest.raises(InvalidValue, match=message):
        live(**options)


def test_small_buffers_and_texts_are_refused():
    with pytest.raises(InvalidValue, match=r"batch=70 is more than half of buffer_rows=128"):
        live().reader(70)
    with pytest.raises(InvalidValue, match=r"more than half of buffer_rows=40"):
        next(live(buffer_rows=40).reader(10))
    ids = torch.randint(3, 60, (4, 8))
    model = tiny_llama()
    whole = LiveActivations(model, at=HOOK, tokens=ids, buffer_rows=64, batch_size=2)
    train, held_out = whole.split()
    assert len(next(train.reader(16))) == 16 and held_out.contexts == 2
    vectors = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(InvalidValue, match="reads tokens"):
        LiveActivations(vectors, at="0", batches=[torch.ones(2, 4)])
    batch = {"input_ids": ids}
    pooled = LiveActivations(tiny_bert(), at="pooler", batches=[batch], buffer_rows=128)
    with pytest.raises(InvalidValue, match="a row for each token"):
        next(pooled.reader(1))


def test_values_that_are_not_finite_are_found_when_they_come():
    source = live()
    reader = source.reader(20)
    next(reader)
    with torch.no_grad():
        source._model.model.embed_tokens.weight.fill_(torch.nan)
    with pytest.raises(NonFinite, match=r"context \d+"):
        drawn(reader, 300)


def test_what_is_opened_or_made_of_tensors_is_an_ordinary_store(tmp_path):
    stored(path=tmp_path)
    assert type(LiveActivations.open(tmp_path)) is ActivationStore
    assert type(LiveActivations.from_tensor(torch.ones(3, 2))) is ActivationStore
