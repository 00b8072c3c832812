"""Ids on the Hugging Face hub of models that other libraries call by shorter names.

Files of autoencoders often name a model as TransformerLens does. Where that is the last part of its
id, only the publisher is lacking. Models that nobody but TransformerLens has stay as they are.
"""

from __future__ import annotations

import re
from pathlib import Path

_IDS = {
    "gpt2-small": "gpt2",
    "distillgpt2": "distilgpt2",
    "gpt-j": "EleutherAI/gpt-j-6B",
    "gpt-neo-small": "EleutherAI/gpt-neo-125M",
    "gpt-neo-medium": "EleutherAI/gpt-neo-1.3B",
    "gpt-neo-large": "EleutherAI/gpt-neo-2.7B",
    "gpt-neox": "EleutherAI/gpt-neox-20b",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "mistral-7b-instruct": "mistralai/Mistral-7B-Instruct-v0.1",
    "llama-3-8b": "meta-llama/Meta-Llama-3-8B",
    "llama-3-8b-instruct": "meta-llama/Meta-Llama-3-8B-Instruct",
    "phi-1": "microsoft/phi-1",
    "phi-1.5": "microsoft/phi-1_5",
    "phi-2": "microsoft/phi-2",
}
_PUBLISHERS = tuple(
    # A name of this form is the last part of the publisher's id; the suffix -v0 is an old one.
    (publisher, re.compile(form, re.IGNORECASE))
    for publisher, form in (
        ("EleutherAI", r"(pythia-\d+(?:\.\d+)?[mb](?:-deduped)?)(?:-v0)?"),
        ("google", r"(gemma-(?:2b|7b|[23]-\d+[mb])(?:-(?:it|pt))?)"),
        ("facebook", r"(opt-\d+(?:\.\d+)?[mb])"),
        ("meta-llama", r"(llama-3\.[12]-\d+b(?:-instruct)?)"),
        ("Qwen", r"(qwen(?:1\.5|2|2\.5|3)-\d+(?:\.\d+)?b(?:-chat|-instruct|-base)?)"),
        ("google-bert", r"(bert-(?:base|large)-(?:un)?cased)"),
    )
)


def hub_id(name: str) -> str:
    """Returns the hub id of a model that is named as in TransformerLens, or the name as it is.

    A directory of that name goes first. Ids are compared without regard to case on the hub.

    Args:
        name: For example "gpt2-small", or an id, or a directory.

    Example:
        >>> hub_id("gpt2-small"), hub_id("pythia-70m-deduped"), hub_id("EleutherAI/pythia-70m")
        ('gpt2', 'EleutherAI/pythia-70m-deduped', 'EleutherAI/pythia-70m')
    """
    if "/" in name or Path(name).exists():
        return name
    if name.lower() in _IDS:
        return _IDS[name.lower()]
    found = ((publisher, form.fullmatch(name)) for publisher, form in _PUBLISHERS)
    return next((f"{publisher}/{match[1]}" for publisher, match in found if match), name)
