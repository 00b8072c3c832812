"""Reads the model and tokenizer files of the llama2.c project and writes a Hugging Face folder.

The weights are a header of seven int32 and then float32 arrays, one after another. Its rotary
embedding turns neighbouring entries (2i, 2i + 1) of a head; Hugging Face turns entries (i, i +
half). The rows of the query and key matrices are therefore reordered, which leaves every dot
product of query and key as it was.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsecraft.core.errors import CheckpointError
from sparsecraft.lab.tasks import pretrained
from sparsecraft.model.checkpoints import quiet

HEADER = struct.Struct("<7i")
UNKNOWN, BOS, EOS, FIRST_BYTE = 0, 1, 2, 3
ROPE_THETA = 10000.0
EPSILON = 1e-5


@dataclass(frozen=True)
class Header:
    """The shape of a llama2.c model.

    Args:
        dim: Width.
        hidden: Width of the feed-forward layers.
        layers: Blocks.
        heads: Query heads.
        kv_heads: Key and value heads.
        vocabulary: Tokens.
        context: Longest sequence.
        tied: Whether the classifier shares the token embedding.
    """

    dim: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    context: int
    tied: bool

    @classmethod
    def parse(cls, data: bytes, path: Path) -> Header:
        """Returns the header at the start of a file; a negative vocabulary means untied.

        Raises:
            CheckpointError: If the numbers cannot be those of a model.
        """
        if len(data) < HEADER.size:
            raise CheckpointError(f"{path} has {len(data)} bytes: too short for a llama2.c model.")
        dim, hidden, layers, heads, kv_heads, vocabulary, context = HEADER.unpack_from(data)
        header = cls(dim, hidden, layers, heads, kv_heads, abs(vocabulary), context, vocabulary > 0)
        positive = min(dim, hidden, layers, heads, kv_heads, abs(vocabulary), context) > 0
        if not positive or dim % heads or heads % kv_heads or (dim // heads) % 2:
            raise CheckpointError(f"{path} is not a llama2.c model file: its header says {header}.")
        return header

    @property
    def head_size(self) -> int:
        """Entries of one head."""
        return self.dim // self.heads

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The arrays of the file, in order."""
        kv = self.kv_heads * self.head_size
        shapes: dict[str, tuple[int, ...]] = {
            "embedding": (self.vocabulary, self.dim),
            "attention_norm": (self.layers, self.dim),
            "q": (self.layers, self.dim, self.dim),
            "k": (self.layers, kv, self.dim),
            "v": (self.layers, kv, self.dim),
            "o": (self.layers, self.dim, self.dim),
            "mlp_norm": (self.layers, self.dim),
            "gate": (self.layers, self.hidden, self.dim),
            "down": (self.layers, self.dim, self.hidden),
            "up": (self.layers, self.hidden, self.dim),
            "norm": (self.dim,),
            "rope_cosine": (self.context, self.head_size // 2),
            "rope_sine": (self.context, self.head_size // 2),
        }
        if not self.tied:
            shapes["classifier"] = (self.vocabulary, self.dim)
        return shapes


def read_weights(path: Path) -> tuple[Header, dict[str, np.ndarray]]:
    """Returns the header and the named arrays of a llama2.c file.

    Raises:
        CheckpointError: If the file's length does not fit its header.
    """
    data = path.read_bytes()
    header = Header.parse(data, path)
    expected = HEADER.size + 4 * sum(int(np.prod(shape)) for shape in header.shapes.values())
    if len(data) != expected:
        raise CheckpointError(
            f"{path} has {len(data)} bytes, but its header asks for {expected}: the file is cut "
            "short, or it is not in the original float32 format."
        )
    arrays = {}
    offset = HEADER.size
    for name, shape in header.shapes.items():
        size = int(np.prod(shape))
        arrays[name] = np.frombuffer(data, "<f4", size, offset).reshape(shape)
        offset += 4 * size
    return header, arrays


def convert_stories260k(
    bin_path: str | Path, tokenizer_path: str | Path, out_dir: str | Path
) -> Path:
    """Writes a llama2.c model as a Hugging Face Llama directory, and returns that directory.

    Args:
        bin_path: The model file, float32.
        tokenizer_path: Its tokenizer file.
        out_dir: Where config, safetensors and tokenizer are written.

    Raises:
        CheckpointError: If a file is damaged, or the two do not belong together.
    """
    transformers = pretrained.transformers_library("Converting a llama2.c model")
    header, arrays = read_weights(Path(bin_path))
    tokenizer = read_tokenizer(Path(tokenizer_path), header.vocabulary)
    config = transformers.LlamaConfig(
        vocab_size=header.vocabulary,
        hidden_size=header.dim,
        intermediate_size=header.hidden,
        num_hidden_layers=header.layers,
        num_attention_heads=header.heads,
        num_key_value_heads=header.kv_heads,
        max_position_embeddings=header.context,
        rms_norm_eps=EPSILON,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=header.tied,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    model = transformers.LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state_dict(header, arrays), strict=False)
    if unexpected or set(missing) - ({"lm_head.weight"} if header.tied else set()):
        raise CheckpointError(
            f"{bin_path} does not fill a Llama: missing {missing}, left over {unexpected}."
        )
    folder = Path(out_dir)
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def state_dict(header: Header, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Returns the weights under the names, and in the row order, of Hugging Face."""
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    state = {
        "model.embed_tokens.weight": tensors["embedding"],
        "model.norm.weight": tensors["norm"],
    }
    if not header.tied:
        state["lm_head.weight"] = tensors["classifier"]
    names = {
        "self_attn.v_proj": "v",
        "self_attn.o_proj": "o",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "mlp_norm",
        "mlp.gate_proj": "gate",
        "mlp.up_proj": "up",
        "mlp.down_proj": "down",
    }
    for layer in range(header.layers):
        prefix = f"model.layers.{layer}."
        for target, source in names.items():
            state[f"{prefix}{target}.weight"] = tensors[source][layer]
        for part, heads in (("q", header.heads), ("k", header.kv_heads)):
            rows = halves_from_pairs(tensors[part][layer], heads)
            state[f"{prefix}self_attn.{part}_proj.weight"] = rows
    return state


def halves_from_pairs(weight: Tensor, heads: int) -> Tensor:
    """Returns the rows reordered so that rotary pairs (2i, 2i + 1) become (i, i + half).

    Args:
        weight: (heads * head size, in).
        heads: Number of heads.

    Example:
        >>> halves_from_pairs(torch.arange(4.0).view(4, 1), heads=1).flatten()
        tensor([0., 2., 1., 3.])
    """
    rows, columns = weight.shape
    paired = weight.view(heads, rows // heads // 2, 2, columns)
    return paired.transpose(1, 2).reshape(rows, columns)


def read_pieces(path: Path, vocabulary: int) -> list[tuple[bytes, float]]:
    """Returns (piece, score) of every token of a llama2.c tokenizer file.

    Raises:
        CheckpointError: If the file does not hold this many pieces.
    """
    data = path.read_bytes()
    pieces = []
    offset = 4  # an int32 first: the longest piece
    try:
        for _ in range(vocabulary):
            score, length = struct.unpack_from("<fi", data, offset)
            piece = struct.unpack_from(f"<{length}s", data, offset + 8)[0]
            pieces.append((piece, score))
            offset += 8 + length
    except struct.error as error:
        raise CheckpointError(
            f"{path} holds {len(pieces)} pieces, but the model has {vocabulary} tokens."
        ) from error
    if offset != len(data):
        raise CheckpointError(f"{path} holds more than the model's {vocabulary} tokens.")
    return pieces


def read_tokenizer(path: Path, vocabulary: int) -> Any:
    """Returns the tokenizer: greedy merges by score, single bytes for unknown characters."""
    transformers = pretrained.transformers_library("Converting a llama2.c tokenizer")
    from tokenizers import Tokenizer, decoders, models, normalizers

    pieces = read_pieces(path, vocabulary)
    texts = [piece.decode("utf-8") for piece, _ in pieces]
    texts[UNKNOWN], texts[BOS], texts[EOS] = "<unk>", "<s>", "</s>"
    ids = {text: index for index, text in enumerate(texts)}
    tokenizer = Tokenizer(
        models.BPE(vocab=ids, merges=_merges(texts, pieces), unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def _merges(texts: list[str], pieces: list[tuple[bytes, float]]) -> list[tuple[str, str]]:
    """Returns every way to join two pieces into a third, the best score first."""
    known = set(texts[FIRST_BYTE:])
    joins = [
        (-pieces[index][1], index, cut, (text[:cut], text[cut:]))
        for index, text in enumerate(texts[FIRST_BYTE:], FIRST_BYTE)
        for cut in range(1, len(text))
        if text[:cut] in known and text[cut:] in known
    ]
    return [pair for *_, pair in sorted(joins)]
