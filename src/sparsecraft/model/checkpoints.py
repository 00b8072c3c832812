"""Model directories: read with every check that can be made before loading, written whole.

What is saved loads anywhere: an ordinary Hugging Face directory with exact zeros and unchanged
keys. Masks lie beside it in `masks.safetensors`, settings in `sparsecraft_config.json`; nothing is
added to `config.json`. A model whose shapes its config cannot express (heads removed from some
layers) is saved in the compact form, which `sparsecraft.load` reads.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsecraft.core.errors import CheckpointError, MissingDependency
from sparsecraft.core.mask import Mask
from sparsecraft.model.augmentation import augment, augmentations
from sparsecraft.model.files import atomic_directory, refuse_existing
from sparsecraft.model.gate_files import GATES, describe_gates, read_gates, write_gates
from sparsecraft.model.packed import (
    PACKED,
    load_packed,
    masks_in_weights,
    packed_masks,
    safetensors_bytes,
    save_packed,
)

CONFIG = "sparsecraft_config.json"
MASKS = "masks.safetensors"
_VERSION = 1
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth")
Form = Literal["plain", "compact", "augmented", "packed"]
TRAINING_SETTINGS = {"version": _VERSION, "form": "training"}
"""What marks a folder as a checkpoint in the middle of a training."""


def load_pretrained(
    source: str | Path,
    *,
    kind: str = "auto",
    dtype: torch.dtype = torch.float32,
    allow_pickle: bool = False,
) -> nn.Module:
    """Returns the model of a Hugging Face directory or hub id, in evaluation mode.

    Args:
        source: A directory, or a hub id such as "org/name".
        kind: "auto" takes the class that the config names; "embedding", "causal-lm",
            "masked-lm", "classification", "image-classification" ask for that head.
        dtype: Of the weights.
        allow_pickle: Whether weights that exist only as a pickle may be loaded. A pickle can run
            any code when it is opened.

    Raises:
        CheckpointError: If the directory has no config or no weights, only a pickle, or a
            damaged safetensors file; the message says which file.
    """
    path = Path(source)
    if path.is_dir():
        settings = read_settings(path)
        refuse_unfinished(path, settings)
        check_directory(path, allow_pickle=allow_pickle)
        if settings.get("form") in ("compact", "augmented", "packed"):
            return _load_changed(path, settings, dtype)
    elif path.exists():
        raise CheckpointError(f"{path} is a file; give the directory that holds config.json")
    elif str(source).startswith((".", "/", "~")) or str(source).count("/") > 1:
        raise CheckpointError(f"there is no directory {path}")
    loader = model_class(source, kind)
    extra = {} if allow_pickle else {"use_safetensors": True}
    try:
        with quiet():
            model = loader.from_pretrained(str(source), dtype=dtype, **extra)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"could not load {source}: {error}") from error
    return model.eval()


def load(directory: str | Path, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Returns a model that sparsecraft saved, in any of the three forms, in evaluation mode.

    The masks beside it, if any, are checked against the weights.

    Raises:
        CheckpointError: If the directory cannot be read, or pruned weights are not zero.
    """
    path = Path(directory)
    if path.is_file():
        raise CheckpointError(
            f"{path} is a file, perhaps a checkpoint of a training that is to be resumed and "
            "finalized; give the directory of a finished model"
        )
    if not path.is_dir():
        raise CheckpointError(f"there is no directory {path}")
    model = load_pretrained(path, dtype=dtype)
    mask = load_mask(path)
    if mask is not None:
        mask.verify(dict(model.named_parameters()))
    return model


def load_mask(directory: str | Path) -> Mask | None:
    """Returns the masks saved beside a model, or None if there are none."""
    path = Path(directory)
    found = dict(read_mask(path / MASKS)) if (path / MASKS).is_file() else {}
    names = read_settings(path).get("masks_in_weights", [])
    found |= packed_masks(path / PACKED, names) if names else {}
    return Mask(found) if found else None


def read_mask(path: Path) -> Mask:
    """Returns the masks of a file."""
    from safetensors import safe_open

    check_safetensors(path)
    with safe_open(str(path), "pt") as file:
        bits = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return Mask.unpacked(bits, file.metadata() or {})


def mask_bytes(mask: Mask) -> bytes:
    """Returns the content of a mask file: safetensors, one bit an entry."""
    return safetensors_bytes(*mask.packed())


def save(
    model: nn.Module,
    directory: str | Path,
    *,
    mask: Mask | None = None,
    settings: Mapping[str, Any] | None = None,
    form: Form = "plain",
    overwrite: bool = False,
    extras: Callable[[Path], None] | None = None,
) -> Path:
    """Writes a model directory whole, or leaves what was there.

    Args:
        model: A Hugging Face model, or any module (then only `model.safetensors` is written).
        directory: Where; it must not hold anything unless `overwrite`.
        mask: What was pruned; verified first, then written beside the weights.
        settings: Written into `sparsecraft_config.json`.
        form: "plain" if the model's own config says its shapes, "compact" if not, "augmented" if
            it has modules of sparsecraft beside its own; "packed" writes any of them without its
            zeros, and a mask only where the zeros do not say it.
        overwrite: Whether a directory that exists is replaced.
        extras: Called with the folder to add files to, such as a tokenizer.

    Returns:
        The directory.

    Raises:
        CheckpointError: If it exists, cannot be written, or has modules that its form cannot say.
        InvalidValue: If a pruned weight is not zero.
    """
    target = Path(directory)
    refuse_existing(target, overwrite=overwrite)
    if mask is not None:
        mask.verify(dict(model.named_parameters()))
    if form not in ("augmented", "packed"):
        _refuse_augmented(model, form)
    described = {"version": _VERSION, "form": form, **dict(settings or {})}
    if form in ("compact", "packed") and hasattr(model, "config"):
        described["modules"] = _changed_attributes(model)
    if form in ("augmented", "packed"):
        described["augmentations"] = augmentations(model)
        described["gates"] = describe_gates(model)
    if form == "packed" and mask is not None:
        described["masks_in_weights"], mask = masks_in_weights(model, mask)
    with atomic_directory(target, overwrite=overwrite) as folder:
        _write_weights(model, folder, form)
        if mask:
            (folder / MASKS).write_bytes(mask_bytes(mask))
        if form in ("augmented", "packed"):
            write_gates(model, folder)
        (folder / CONFIG).write_text(json.dumps(described, indent=2, default=str) + "\n")
        if extras is not None:
            extras(folder)
    return target


def read_settings(directory: Path) -> dict[str, Any]:
    """Returns what `sparsecraft_config.json` holds, or nothing if it is not there.

    Raises:
        CheckpointError: If it is damaged or from a later version.
    """
    path = directory / CONFIG
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if settings.get("version", 0) > _VERSION:
        raise CheckpointError(
            f"{path} is of version {settings['version']}; this sparsecraft reads up to {_VERSION}. "
            "Update sparsecraft."
        )
    return settings


def _refuse_augmented(model: nn.Module, form: Form) -> None:
    """Raises CheckpointError where a model's config would make it without some of its modules."""
    beyond = augmentations(model) if hasattr(model, "config") else {}
    if beyond:
        name, described = next(iter(beyond.items()))
        raise CheckpointError(
            f"{name} is a {described['kind']}, which the form {form!r} would lose: save the model "
            'with form="augmented", which sparsecraft.load reads'
        )
    if form in ("plain", "compact") and describe_gates(model):
        raise CheckpointError(
            f"the model's gates would be lost in the form {form!r}: save it with "
            'form="augmented", which sparsecraft.load reads, or take them out with undo()'
        )


def plain_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what `sparsecraft_config.json` holds beside a plain model with these settings."""
    return {"version": _VERSION, "form": "plain", **dict(settings)}


def refuse_unfinished(path: Path, settings: Mapping[str, Any]) -> None:
    """Raises CheckpointError if a folder is no finished model that a config describes.

    Args:
        path: The folder.
        settings: What its `sparsecraft_config.json` holds.
    """
    if settings.get("form") == "training":
        raise CheckpointError(
            f"{path} is a checkpoint in the middle of a sparse training: its weights are raw, "
            "not those of a finished model. Resume the training and finalize it."
        )
    if "task" in settings and not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} holds a plain torch model of the task {settings['task']}, and no config "
            "that says how it is built: load it with "
            f"sparsecraft.lab.finished.load_finished({str(path)!r})"
        )


def check_safetensors(path: Path) -> None:
    """Raises CheckpointError if a safetensors file is cut off or its header is damaged."""
    size = path.stat().st_size
    if size < 8:
        raise CheckpointError(f"{path} is not a safetensors file: it has {size} bytes")
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > size - 8:
            raise CheckpointError(f"{path} is cut off in its header ({size} bytes); copy it again")
        try:
            header = json.loads(file.read(length))
        except ValueError as error:
            raise CheckpointError(f"{path} has a damaged header: {error}") from error
    ends = [each["data_offsets"][1] for name, each in header.items() if name != "__metadata__"]
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        raise CheckpointError(
            f"{path} is cut off: {size} of {expected} bytes are there. Copy or download it again."
        )


def check_directory(path: Path, *, allow_pickle: bool = False) -> None:
    """Raises CheckpointError unless the folder holds a config and whole weights.

    Args:
        path: A model directory.
        allow_pickle: Whether weights that exist only as a pickle will do.
    """
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} has no config.json, so it is not a Hugging Face model directory"
        )
    shards = sorted(path.glob("*.safetensors"))
    shards = [shard for shard in shards if shard.name not in (MASKS, GATES)]
    index = path / "model.safetensors.index.json"
    if index.is_file():
        named = set(json.loads(index.read_text())["weight_map"].values())
        missing = sorted(named - {shard.name for shard in shards})
        if missing:
            raise CheckpointError(f"{path} lacks {len(missing)} of its shards: {missing[:3]}")
    for shard in shards:
        check_safetensors(shard)
    if shards:
        return
    pickles = [name for name in _PICKLES if (path / name).is_file()]
    if not pickles:
        raise CheckpointError(f"{path} holds no weights (no *.safetensors)")
    if not allow_pickle:
        raise CheckpointError(
            f"{path} holds its weights only as a pickle ({pickles[0]}), which can run any code "
            "when opened. Convert it to safetensors, or say --allow-pickle (allow_pickle=True) if "
            "you trust it."
        )


def model_class(source: str | Path, kind: str = "auto") -> Any:
    """Returns the class of transformers that a model is loaded as.

    Args:
        source: A model directory or hub id.
        kind: As in `load_pretrained`; "auto" takes the class that the config names.

    Raises:
        CheckpointError: If the kind is not known or the config cannot be read.
    """
    transformers = _transformers()
    heads = {
        "embedding": "AutoModel",
        "causal-lm": "AutoModelForCausalLM",
        "masked-lm": "AutoModelForMaskedLM",
        "classification": "AutoModelForSequenceClassification",
        "image-classification": "AutoModelForImageClassification",
    }
    if kind in heads:
        return getattr(transformers, heads[kind])
    if kind != "auto":
        raise CheckpointError(f"kind={kind!r} is not known; choose auto or one of {sorted(heads)}")
    try:
        config = transformers.AutoConfig.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"could not read the config of {source}: {error}") from error
    named = (getattr(config, "architectures", None) or [""])[0]
    return getattr(transformers, named, None) or transformers.AutoModel


def _write_weights(model: Any, folder: Path, form: Form) -> None:
    from safetensors import SafetensorError

    try:
        if form == "plain" and hasattr(model, "save_pretrained"):
            with quiet():
                model.save_pretrained(str(folder))
        else:
            _write_own_keys(model, folder, packed=form == "packed")
    except SafetensorError as error:
        # The library's own error for a disk that is full; atomic_directory reports it.
        raise OSError(str(error)) from error


def _write_own_keys(model: Any, folder: Path, *, packed: bool) -> None:
    """Writes config and weights with the module's keys, which save_pretrained renames for some."""
    from safetensors.torch import save_model

    if hasattr(model, "config"):
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(str(folder))
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(str(folder))
    if packed:
        save_packed(model, folder / PACKED)
        return
    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})


def _changed_attributes(model: nn.Module) -> dict[str, dict[str, int]]:
    """Returns the integer attributes of modules that its config alone would give otherwise."""
    fresh = dict(build_model(model.config, type(model)).named_modules())
    changed: dict[str, dict[str, int]] = {}
    for name, module in model.named_modules():
        theirs = vars(fresh[name]) if name in fresh else {}
        mine = {k: v for k, v in vars(module).items() if type(v) is int and k in theirs}
        differing = {k: v for k, v in mine.items() if v != theirs[k]}
        if differing:
            changed[name] = differing
    return changed


def _load_changed(path: Path, settings: Mapping[str, Any], dtype: torch.dtype) -> nn.Module:
    """Builds the model its config describes, then gives every module its saved shape and branch."""
    from safetensors.torch import load_file

    transformers = _transformers()
    config = transformers.AutoConfig.from_pretrained(str(path))
    cls = getattr(transformers, (config.architectures or ["AutoModel"])[0])
    model = build_model(config, cls)
    modules = dict(model.named_modules())
    for name, attributes in settings.get("modules", {}).items():
        for key, value in attributes.items():
            setattr(modules[name], key, value)
    augment(model, settings.get("augmentations", {}))
    modules = dict(model.named_modules())
    state: dict[str, Tensor] = load_packed(path / PACKED) if settings["form"] == "packed" else {}
    for shard in sorted(path.glob("model*.safetensors")):
        state.update(load_file(str(shard)))
    for name, tensor in state.items():
        owner, short = modules[name.rpartition(".")[0]], name.rpartition(".")[2]
        current = getattr(owner, short)
        if current is None or current.shape != tensor.shape:
            resized = torch.empty(tensor.shape, dtype=tensor.dtype)
            # A bias that is not there yet took up the constants of removed channels.
            is_parameter = current is None or isinstance(current, nn.Parameter)
            setattr(owner, short, nn.Parameter(resized) if is_parameter else resized)
    missing, surplus = model.load_state_dict(state, strict=False)
    tied = {name for name in missing if name in _tied_names(model)}
    if surplus or set(missing) - tied:
        raise CheckpointError(
            f"{path}: weights and model differ; missing {sorted(set(missing) - tied)[:3]}, "
            f"surplus {surplus[:3]}"
        )
    model.to(dtype).eval()
    if (path / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(str(path))
    if settings.get("gates"):
        read_gates(model, path, settings["gates"])
    return model


def _tied_names(model: nn.Module) -> set[str]:
    seen: dict[int, str] = {}
    tied: set[str] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in seen:
            tied |= {name, seen[id(parameter)]}
        seen.setdefault(id(parameter), name)
    return tied


def build_model(config: Any, cls: Any) -> nn.Module:
    """Returns the model of a config with fresh weights.

    Args:
        config: Of transformers.
        cls: The model's class, or an Auto class.
    """
    return cls(config) if isinstance(cls, type) else cls.from_config(config)


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from drawing progress bars, and restores the caller's setting."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingDependency("transformers", "hf", "Loading a Hugging Face model") from error
    return transformers
