"""Tiny random models of real architectures, for every test that needs one; no files, no network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

VOCAB = 64
WIDTH = 32
LENGTH = 64
_TOKENS = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DECODER = {
    **_TOKENS,
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
}


class Blocks(nn.Module):
    """Two residual blocks and a head on sequences of vectors (n, tokens, 16)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        block = lambda: nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16))  # noqa: E731
        self.blocks = nn.ModuleList([block(), block()])
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(1))


def tiny_mlp(seed: int = 0) -> nn.Sequential:
    """Returns 12 -> 16 -> 8 -> 4 with ReLUs, a network without blocks."""
    with _seeded(seed):
        return nn.Sequential(
            nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)
        ).eval()


def tiny_cnn(seed: int = 0) -> nn.Sequential:
    """Returns two convolutions with BatchNorm and a classifier of 5 classes, for (n, 3, 8, 8)."""
    with _seeded(seed):
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 5),
        ).eval()


def tiny_llama(seed: int = 0, **changes: Any) -> nn.Module:
    """Returns a Llama with grouped-query attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return _built(LlamaForCausalLM, LlamaConfig(**{**_DECODER, **changes}), seed)


def tiny_mistral(seed: int = 0, **changes: Any) -> nn.Module:
    """Returns a Mistral with a sliding window."""
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(**{**_DECODER, "sliding_window": 16, **changes})
    return _built(MistralForCausalLM, config, seed)


def tiny_qwen2(seed: int = 0, **changes: Any) -> nn.Module:
    """Returns a Qwen2, whose query, key and value have biases."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return _built(Qwen2ForCausalLM, Qwen2Config(**{**_DECODER, **changes}), seed)


def tiny_qwen3(seed: int = 0, **changes: Any) -> nn.Module:
    """Returns a Qwen3, whose queries and keys are normalised."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(**{**_DECODER, "head_dim": 8, **changes})
    return _built(Qwen3ForCausalLM, config, seed)


def tiny_mixtral(seed: int = 0, **changes: Any) -> nn.Module:
    """Returns a Mixtral of four experts, two of them chosen for each token."""
    from transformers import MixtralConfig, MixtralForCausalLM

    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return _built(MixtralForCausalLM, MixtralConfig(**{**_DECODER, **experts, **changes}), seed)


def tiny_gpt2(seed: int = 0, **changes: Any) -> nn.Module:
    """Returns a GPT-2, whose layers are Conv1D with fused query, key and value."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": LENGTH}
    return _built(GPT2LMHeadModel, GPT2Config(**{**_TOKENS, **sizes, **changes}), seed)


def tiny_opt(seed: int = 0, **changes: Any) -> nn.Module:
    """Returns an OPT, with learned positions and biases."""
    from transformers import OPTConfig, OPTForCausalLM

    sizes = {
        "hidden_size": WIDTH,
        "word_embed_proj_dim": WIDTH,
        "ffn_dim": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": LENGTH,
    }
    return _built(OPTForCausalLM, OPTConfig(**{**_TOKENS, **sizes, **changes}), seed)


def tiny_neox(seed: int = 0, **changes: Any) -> nn.Module:
    """Returns a GPT-NeoX, with attention and MLP in parallel and a fused query, key and value."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    sizes = {k: v for k, v in _DECODER.items() if k != "num_key_value_heads"}
    return _built(GPTNeoXForCausalLM, GPTNeoXConfig(**{**sizes, **changes}), seed)


def tiny_bert(seed: int = 0, **changes: Any) -> nn.Module:
    """Returns a BERT encoder with its pooler."""
    from transformers import BertConfig, BertModel

    sizes = {k: v for k, v in _DECODER.items() if k != "num_key_value_heads"}
    return _built(BertModel, BertConfig(**{**sizes, **changes}), seed)


def tiny_vit(seed: int = 0, **changes: Any) -> nn.Module:
    """Returns a ViT classifier of 5 classes for images of 16 x 16."""
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 16,
        "patch_size": 4,
        "num_labels": 5,
    }
    return _built(ViTForImageClassification, ViTConfig(**{**sizes, **changes}), seed)


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "llama": tiny_llama,
    "mistral": tiny_mistral,
    "qwen2": tiny_qwen2,
    "qwen3": tiny_qwen3,
    "gpt2": tiny_gpt2,
    "opt": tiny_opt,
    "gpt-neox": tiny_neox,
    "bert": tiny_bert,
    "mixtral": tiny_mixtral,
    "vit": tiny_vit,
}


def batches_for(model: nn.Module, count: int = 2, rows: int = 3, seed: int = 0) -> list[dict]:
    """Returns random inputs of `model(**batch)`: token ids of 12 tokens, or images."""
    draws = torch.Generator().manual_seed(seed)
    config = model.config
    if hasattr(config, "image_size"):
        shape = (rows, config.num_channels, config.image_size, config.image_size)
        return [{"pixel_values": torch.randn(shape, generator=draws)} for _ in range(count)]
    made: list[dict[str, Tensor]] = []
    for _ in range(count):
        ids = torch.randint(3, config.vocab_size, (rows, 12), generator=draws)
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return made


def tiny_tokenizer() -> Any:
    """Returns a tokenizer of whole words: the digits, some words and [UNK], within `VOCAB`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "<s>", "</s>", "[UNK]", "the", "cat", "sat", "on", "a", "mat", ".", ","]
    vocabulary = {word: i for i, word in enumerate([*words, *map(str, range(VOCAB - len(words)))])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="[UNK]",
        pad_token="[PAD]",
        bos_token="<s>",
        eos_token="</s>",
        model_max_length=LENGTH,
    )


def save_directory(model: nn.Module, directory: Path) -> Path:
    """Writes a Hugging Face directory with the tiny tokenizer, and returns it."""
    model.save_pretrained(str(directory))
    tiny_tokenizer().save_pretrained(str(directory))
    return directory


def _built(cls: Any, config: Any, seed: int) -> nn.Module:
    with _seeded(seed):
        return cls(config).eval()


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draws from this seed inside the block and leaves the global stream as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
