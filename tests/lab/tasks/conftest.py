"""Tiny versions of every task, on real data where it is installed and synthetic files elsewhere."""

from __future__ import annotations

import gzip
import importlib.util
import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sparsecraft.lab.tasks import Task, load_task, text_task
from sparsecraft.lab.tasks.docs_retrieval import MODEL_PACKAGE
from sparsecraft.lab.tasks.stdlib_docs import docstrings
from sparsecraft.lab.tasks.trained_language import LanguageSettings

PIECES = [b"<unk>", b"\n<s>\n", b"\n</s>\n", *(b"<0x%02X>" % byte for byte in range(256))]
LETTERS = [bytes([code]) for code in range(97, 123)]
JOINED = [b" ", b"th", b"he", b" t", b"the", b" the", b"an", b"nd", b"and", b" and", b"in"]


@pytest.fixture(scope="session", autouse=True)
def task_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARSECRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def made_data(tmp_path_factory) -> Path:
    """A data folder with small synthetic files in the layout of the real ones."""
    root = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    _write_fashion(root / "fashion_mnist", draw)
    _write_cifar(root / "cifar10_jpg", draw)
    _write_wikitext(root / "wikitext2")
    _write_llama2c(root / "stories260k", tied=True)
    return root


@pytest.fixture(scope="session")
def write_llama2c() -> Callable[..., None]:
    """Writes a random model in the format of llama2.c, and its tokenizer of 296 pieces."""
    return _write_llama2c


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "docs.txt"
    path.write_text("\n\n".join(doc.text for doc in docstrings()[:400]), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory) -> Path:
    """A random BERT with a word-piece tokenizer of its own."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator((doc.text for doc in docstrings()[:900]), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder = tmp_path_factory.mktemp("encoder")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    ).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=400,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=64,
        )
        BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_task(made_data, text_file, encoder_dir) -> Callable[[str], Task]:
    """Returns tiny tasks by name, each made once."""
    made: dict[str, Task] = {}

    def make(name: str) -> Task:
        if name not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("SPARSECRAFT_DATA", str(made_data))
                made[name] = _make(name, make, text_file, encoder_dir)
        return made[name]

    return make


def _make(name: str, make: Callable[[str], Task], text_file: Path, encoder_dir: Path) -> Task:
    if name == "causal-text":
        return text_task(make("stdlib-lm").model_dir, text_file)
    if name == "embedding-text":
        return text_task(encoder_dir, text_file)
    if name == "docs-retrieval":
        bundled = importlib.util.find_spec(MODEL_PACKAGE) is not None
        return load_task(name, documents=64, model_dir=None if bundled else encoder_dir)
    if name == "stories260k":
        sizes = {"training_windows": 24, "validation_windows": 8, "test_windows": 12}
        task = load_task(name, context=16, **sizes)
        task.windows  # noqa: B018 - sampled while the data folder is known
        return task
    if name == "stdlib-lm":
        return load_task(name, files=25, steps=3)
    if name == "stdlib-llama":
        return load_task(name, files=25, steps=3, size=LanguageSettings())
    return load_task(name, steps=3)


def _write_fashion(folder: Path, draw: np.random.Generator) -> None:
    folder.mkdir()
    for stem, count in (("train", 120), ("t10k", 40)):
        pixels = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        if stem == "t10k":
            pixels[0] = np.full((28, 28), 7, np.uint8)
        else:
            pixels[3] = np.full((28, 28), 7, np.uint8)  # a picture that the test half has too
        labels = (np.arange(count) % 10).astype(np.uint8)
        header = struct.pack(">4B3i", 0, 0, 8, 3, count, 28, 28)
        images = gzip.compress(header + pixels.tobytes())
        (folder / f"{stem}-images-idx3-ubyte.gz").write_bytes(images)
        header = struct.pack(">4Bi", 0, 0, 8, 1, count)
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(header + labels.tobytes())
        )


def _write_cifar(folder: Path, draw: np.random.Generator) -> None:
    from PIL import Image

    folder.mkdir()
    for half, count in (("train", 60), ("test", 30)):
        files = []
        for _ in range(count):
            stream = io.BytesIO()
            picture = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(picture).save(stream, format="JPEG")
            files.append(stream.getvalue())
        np.savez(
            folder / f"{half}.npz",
            jpeg=np.frombuffer(b"".join(files), np.uint8),
            offsets=np.cumsum([0, *map(len, files)]),
            labels=np.arange(count, dtype=np.uint8) % 10,
        )


def _write_wikitext(folder: Path) -> None:
    folder.mkdir()
    texts = [doc.text for doc in docstrings() if len(doc.text) > 400]
    for name, part in (("valid", texts[:60]), ("test", texts[60:90])):
        articles = (f" = Article {i} = \n \n {text} \n" for i, text in enumerate(part))
        (folder / f"{name}.txt").write_text(" \n" + "".join(articles), encoding="utf-8")


def _write_llama2c(folder: Path, *, tied: bool) -> None:
    draw = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    pieces = [*PIECES, *LETTERS, *JOINED]
    dim, hidden, layers, heads, kv_heads, context = 16, 24, 2, 4, 2, 32
    head = dim // heads
    kv = kv_heads * head
    shapes = [(len(pieces), dim), (layers, dim), (layers, dim, dim), (layers, kv, dim)]
    shapes += [(layers, kv, dim), (layers, dim, dim), (layers, dim), (layers, hidden, dim)]
    shapes += [(layers, dim, hidden), (layers, hidden, dim), (dim,)]
    shapes += [(context, head // 2), (context, head // 2)]
    shapes += [] if tied else [(len(pieces), dim)]
    header = (dim, hidden, layers, heads, kv_heads, len(pieces) * (1 if tied else -1), context)
    weights = [draw.normal(0, 0.5, shape).astype("<f4").tobytes() for shape in shapes]
    (folder / "stories260K.bin").write_bytes(struct.pack("<7i", *header) + b"".join(weights))
    longest = struct.pack("<i", max(map(len, pieces)))
    entries = [
        struct.pack("<fi", -float(index), len(piece)) + piece for index, piece in enumerate(pieces)
    ]
    (folder / "tok512.bin").write_bytes(longest + b"".join(entries))
