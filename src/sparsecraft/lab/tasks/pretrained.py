"""The one place of the tasks that reads Hugging Face model directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from torch import nn

from sparsecraft.core.errors import InvalidValue, MissingDependency
from sparsecraft.model.checkpoints import load_pretrained

ModelKind = Literal["embedding", "causal-lm"]


def transformers_library(purpose: str) -> Any:
    """Returns the transformers package.

    Raises:
        MissingDependency: With the line that installs it.
    """
    try:
        import transformers
    except ImportError as error:
        raise MissingDependency("transformers", "hf", purpose) from error
    return transformers


def load_model(source: str | Path, kind: ModelKind) -> nn.Module:
    """Returns the model of a directory or hub id: float32, evaluation mode.

    Args:
        source: A local model directory, or a hub id such as "org/name".
        kind: "embedding" for the bare encoder, "causal-lm" for a model with its head.
    """
    transformers_library(f"Loading {source}")
    return load_pretrained(source, kind=kind)


def load_tokenizer(source: str | Path) -> Any:
    """Returns the tokenizer of a directory or hub id."""
    transformers = transformers_library(f"Loading the tokenizer of {source}")
    return transformers.AutoTokenizer.from_pretrained(source, **_local(source))


def model_directory(source: str | Path) -> Path:
    """Returns the local folder of a model: the folder itself, or the hub's snapshot.

    Raises:
        InvalidValue: If it is neither a model directory nor a hub id.
    """
    path = Path(source).expanduser()
    if (path / "config.json").is_file():
        return path
    if path.exists() or str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise InvalidValue(
            f"{source} is not a model directory: it has no config.json. Give a folder written by "
            "save_pretrained, or a hub id such as 'org/name'."
        )
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "1_Pooling/*"]
    try:
        return Path(snapshot_download(str(source), allow_patterns=patterns))
    except Exception as error:
        raise InvalidValue(
            f"{source} is neither a local model directory nor a hub model that can be reached "
            f"({type(error).__name__}). Check the path, or the name and the connection."
        ) from error


def model_kind(directory: Path) -> ModelKind:
    """Returns whether the directory's config names a causal language model or an encoder."""
    architectures = json.loads((directory / "config.json").read_text()).get("architectures") or []
    causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in architectures)
    return "causal-lm" if causal else "embedding"


def longest_input(directory: Path) -> int:
    """Returns the most tokens that the directory's config allows, or a million if it sets none."""
    settings = json.loads((directory / "config.json").read_text())
    settings = settings.get("text_config", settings)
    limits = (settings.get(key) for key in ("max_position_embeddings", "n_positions"))
    return min((limit for limit in limits if limit), default=1_000_000)


def pooling_of(directory: Path) -> Literal["mean", "cls"]:
    """Returns how token vectors become one embedding: what the directory says, else the mean."""
    path = directory / "1_Pooling" / "config.json"
    if not path.is_file():
        return "mean"
    settings = json.loads(path.read_text())
    if settings.get("pooling_mode_cls_token"):
        return "cls"
    if settings.get("pooling_mode_mean_tokens", True):
        return "mean"
    raise InvalidValue(
        f"{path} asks for a pooling that is not supported; 'mean' and 'cls' are. Other poolings "
        "need a task of your own."
    )


def _local(source: str | Path) -> dict[str, bool]:
    return {"local_files_only": True} if Path(source).expanduser().is_dir() else {}
