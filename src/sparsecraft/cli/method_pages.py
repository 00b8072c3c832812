"""The page of a method, in Markdown: printed by `sparsecraft methods NAME`, written to the docs."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

from sparsecraft.cli.docstrings import argument_docs, body, default_text, reference, type_name
from sparsecraft.core.catalog import MethodInfo
from sparsecraft.core.kinds import Activation, Gate, Layerwise, ModelWide

TAXONOMY = {
    "of": "what is sparse",
    "when": "when",
    "start_to_end": "from start to end",
    "mask": "mask",
    "criterion": "criterion",
    "granularity": "granularity",
    "allocation": "shares of the layers",
    "budget": "budget",
    "needs": "needs",
    "cost": "cost",
    "runtime": "what it can save",
}


def page(info: MethodInfo) -> str:
    """Returns the Markdown page of a method."""
    title = f", *{info.paper.title}*" if info.paper.title else ""
    number = f" It is paper {info.paper.number:02d} here." if info.paper.number else ""
    module = inspect.getdoc(sys.modules[info.cls.__module__]) or ""
    background = module.partition("\n\n")[2].strip()
    parts = [
        f"# {info.name}",
        body(info.cls),
        f"**Paper:** {info.paper}{title}.{number} Kind: {info.kind}.",
        "## In short",
        background,
        "## Taxonomy",
        _taxonomy(info),
        "## Options",
        _options(info),
        "## Example",
        f"```bash\n{example(info)}\n```",
        f"**Reference:** {reference(info.cls)}" if reference(info.cls) else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def index(methods: list[MethodInfo]) -> str:
    """Returns the Markdown table of all methods."""
    lines = [
        "# Methods",
        "",
        "Written by `sparsecraft methods --markdown docs/methods`; a test holds it to the catalog.",
        "",
        "| method | what it does | paper | when | criterion | needs |",
        "|---|---|---|---|---|---|",
    ]
    for info in methods:
        cells = [
            f"[{info.name}]({info.name}.md)",
            info.summary,
            str(info.paper),
            info.taxonomy.when,
            info.taxonomy.criterion,
            ", ".join(info.taxonomy.needs) or "nothing",
        ]
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def pages(methods: list[MethodInfo]) -> dict[str, str]:
    """Returns file name to content of the whole reference."""
    return {"README.md": index(methods)} | {f"{info.name}.md": page(info) for info in methods}


def write(methods: list[MethodInfo], folder: Path) -> list[Path]:
    """Writes the reference into a folder and returns the files."""
    from sparsecraft.model.files import write_atomic

    for name, content in pages(methods).items():
        write_atomic(folder / name, content)
    return [folder / name for name in pages(methods)]


def example(info: MethodInfo) -> str:
    """Returns a command that uses the method."""
    data = " --calibration text.txt" if "data" in info.taxonomy.needs else ""
    if issubclass(info.cls, Gate):
        share = " --sparsity 0.5" if "sparsity" in info.options else ""
        return f"sparsecraft gate my-model --method {info.name}{share}{data} --out gated"
    if issubclass(info.cls, Activation):
        where = "my-model --at model.layers.2 --text text.txt"
        return f"sparsecraft sae train {where} --activation {info.name} --out my-sae"
    if not issubclass(info.cls, Layerwise | ModelWide):
        return f"sparsecraft methods {info.name}"
    return f"sparsecraft prune my-model --method {info.name} --sparsity 0.5{data} --out sparse"


def _taxonomy(info: MethodInfo) -> str:
    lines = ["| question | answer |", "|---|---|"]
    for field, question in TAXONOMY.items():
        value = getattr(info.taxonomy, field)
        text = ", ".join(value) or "nothing" if isinstance(value, tuple) else value
        lines.append(f"| {question} | {_cell(text)} |")
    return "\n".join(lines)


def _options(info: MethodInfo) -> str:
    docs = argument_docs(info.cls)
    lines = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for name, field in info.options.items():
        cells = [name, type_name(info.cls, name), default_text(field), docs.get(name, "")]
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
