"""`browse`: one self-contained HTML file with the latents of an autoencoder.

Texts, activations and neighbours are written into the page as JSON, so it opens from the disk
anywhere, and nothing is fetched.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sparsecraft.core import seeds
from sparsecraft.core.errors import InvalidValue
from sparsecraft.domains.interpretability.browse.effects import logit_effects, nearest
from sparsecraft.domains.interpretability.browse.readout import Readout, find_readout
from sparsecraft.domains.interpretability.browse.survey import (
    OCTAVES,
    PER_OCTAVE,
    Progress,
    Survey,
    survey,
)
from sparsecraft.domains.interpretability.browse.texts import TokenText, token_text
from sparsecraft.domains.interpretability.browse.windows import Vocabulary, windows
from sparsecraft.model.activation_store import ActivationStore
from sparsecraft.model.files import write_atomic
from sparsecraft.model.sae import SparseAutoencoder

LATENTS = 2000


def browse(
    sae: SparseAutoencoder,
    store: ActivationStore,
    path: str | Path,
    *,
    tokenizer: Any = None,
    model: nn.Module | None = None,
    latents: Sequence[int] | None = None,
    title: str = "",
    most_latents: int = LATENTS,
    most_rows: int = 200_000,
    seed: int = 0,
    progress: Progress | None = None,
    remark: Callable[[str], None] | None = None,
) -> Path:
    """Writes the page and returns its path.

    Every latent is listed with its density; examples, neighbours and logit effects are there for
    those asked for, by default all alive ones, or a random choice where there are too many.

    Args:
        sae: An autoencoder.
        store: Activations with their tokens, best ones that it was not trained on.
        path: Of the HTML file.
        tokenizer: Of the model; None for one that reads bytes.
        model: For the effect of each latent on the logits, which is shown where its hook is on the
            residual stream; else the page says why not.
        latents: Which latents get examples.
        title: Stands on top; by default the model and the hook.
        most_latents: How many get examples where `latents` is not given.
        most_rows: Activations read at most, in whole contexts.
        seed: Of random examples, and of the choice of latents.
        progress: Told (stage, done, total).
        remark: Told what the page says of the effects on logits, before activations are read.

    Raises:
        InvalidValue: If a latent does not exist, or the store has no tokens or another width.
    """
    if store.d_in != sae.d_in:
        raise InvalidValue(
            f"the store's activations have {store.d_in} entries, the autoencoder reads {sae.d_in}: "
            f"harvest at the hook that it was trained on ({sae.info.get('hook', 'not recorded')})"
        )
    effects = _readout(sae, store, model)
    if remark is not None and effects[1]:
        remark(effects[1])
    found = survey(sae, store, most_rows=most_rows, seed=seed, progress=progress)
    chosen = _chosen(found, latents, most_latents, seed)
    data = page_data(sae, store, found, chosen, token_text(tokenizer), effects, progress)
    data["title"] = title or _title(store)
    page = _file("page.html").replace("/*css*/", _file("page.css"))
    page = page.replace("/*js*/", _file("page.js")).replace("/*data*/", _json(data))
    write_atomic(Path(path), page)
    return Path(path)


def page_data(
    sae: SparseAutoencoder,
    store: ActivationStore,
    found: Survey,
    chosen: Tensor,
    text: TokenText,
    effects: tuple[Readout | None, str],
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Returns everything that the page shows, as plain values.

    Args:
        sae: The autoencoder.
        store: Its activations.
        found: What `survey` returned.
        chosen: int64, the latents with examples, ascending.
        text: From token ids to text.
        effects: The way to the logits or None, and what the page says of it.
        progress: Told (stage, done, total).
    """
    vocabulary = Vocabulary(text)
    details = windows(sae, store, found, chosen.tolist(), vocabulary, progress)
    _add_neighbours(details, sae, chosen)
    way, remark = effects
    if way is not None:
        _add_effects(details, sae, chosen, way, vocabulary)
    return {
        "facts": _facts(sae, store, found, chosen),
        "signed": bool(sae.activation.signed),
        "octave": OCTAVES[0],
        "perOctave": PER_OCTAVE,
        "rows": found.rows,
        "fired": found.fired.tolist(),
        "effects": remark,
        "vocabulary": vocabulary.texts,
        "latents": details,
    }


def _chosen(found: Survey, latents: Sequence[int] | None, most: int, seed: int) -> Tensor:
    width = len(found.fired)
    if latents is not None:
        wrong = [latent for latent in latents if not 0 <= latent < width]
        if wrong:
            raise InvalidValue(f"latent {wrong[0]} does not exist: there are 0 to {width - 1}")
        return torch.tensor(sorted(set(latents)), dtype=torch.int64)
    alive = found.fired.nonzero().reshape(-1)
    if len(alive) <= most:
        return alive
    lots = torch.randperm(len(alive), generator=seeds.generator(seed, "browse", "latents"))
    return alive[lots[:most]].sort().values


def _add_neighbours(
    details: dict[int, dict[str, Any]], sae: SparseAutoencoder, chosen: Tensor
) -> None:
    similar = nearest(sae.decoder_rows().detach().float(), chosen)
    for latent, others, cosines in zip(
        chosen.tolist(), similar.latents.tolist(), similar.cosines.tolist(), strict=True
    ):
        pairs = zip(others, cosines, strict=True)
        details[latent]["near"] = [[other, round(cosine, 3)] for other, cosine in pairs]


def _readout(
    sae: SparseAutoencoder, store: ActivationStore, model: nn.Module | None
) -> tuple[Readout | None, str]:
    """Returns the way from where the latents write to the logits, and what to say of it."""
    if model is None:
        return None, "no model was given, so effects on logits are not shown"
    writes = store.info.get("hook_out") or sae.info.get("hook_out")
    at = writes if sae.transcoder else store.at
    if sae.transcoder and writes is None:
        return None, (
            "effects on logits are not shown: the file does not say where this transcoder writes"
        )
    if store.tokens is None or at is None:
        return None, ""  # the survey says what is missing
    return find_readout(model, str(at), store.tokens, sae.d_out)


def _add_effects(
    details: dict[int, dict[str, Any]],
    sae: SparseAutoencoder,
    chosen: Tensor,
    way: Readout,
    vocabulary: Vocabulary,
) -> None:
    effects = logit_effects(way, sae.decoder_rows().detach()[chosen])
    for i, latent in enumerate(chosen.tolist()):
        details[latent]["up"] = _tokens(effects.raised[i], effects.raised_by[i], vocabulary)
        details[latent]["down"] = _tokens(effects.lowered[i], effects.lowered_by[i], vocabulary)


def _tokens(tokens: Tensor, amounts: Tensor, vocabulary: Vocabulary) -> list[list[float]]:
    pairs = zip(tokens.tolist(), amounts.tolist(), strict=True)
    return [[vocabulary.number(token), round(amount, 3)] for token, amount in pairs]


def _facts(
    sae: SparseAutoencoder, store: ActivationStore, found: Survey, chosen: Tensor
) -> list[list[str]]:
    alive = int((found.fired > 0).sum())
    per_row = float(found.fired.sum()) / found.rows
    how = "with the gradient of the model's loss" if store.has_gradient else "without gradients"
    return [
        ["activation", _settings(sae)],
        ["hook", str(store.at or sae.info.get("hook", "not recorded"))],
        ["latents", f"{sae.d_sae:,}, {alive:,} of them fired"],
        *([["latents selected", how]] if sae.activation.needs_gradient else []),
        ["active a token", f"{per_row:.1f}"],
        ["tokens read", f"{found.rows:,} of {len(store):,}"],
        ["with examples", f"{len(chosen):,}"],
    ]


def _settings(sae: SparseAutoencoder) -> str:
    from sparsecraft.core.catalog import describe

    shown = describe(sae.activation)
    name = shown.pop("method")
    listed = ", ".join(f"{key}={value}" for key, value in shown.items() if value is not None)
    return f"{name} ({listed})" if listed else str(name)


def _title(store: ActivationStore) -> str:
    source = Path(str(store.info.get("model") or "activations"))
    # Many folders are called "model"; the one above then says which.
    name = f"{source.parent.name}/{source.name}" if source.name == "model" else source.name
    return f"{name} at {store.at}" if store.at else name


def _json(data: dict[str, Any]) -> str:
    # "</script" and "<!--" would end or change the script element that holds the data.
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _file(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")
