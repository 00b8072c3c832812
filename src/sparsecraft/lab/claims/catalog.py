"""Claims, found by their files: `cNN_name.py` in this folder, each with a `CLAIM`."""

from __future__ import annotations

import importlib
import pkgutil
import re
from functools import cache
from pathlib import Path

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.lab.claims.claim import Claim


@cache
def _modules() -> dict[int, str]:
    found = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        match = re.fullmatch(r"c(\d\d)_\w+", module.name)
        if match:
            found[int(match[1])] = module.name
    return dict(sorted(found.items()))


def claim_numbers() -> list[int]:
    """Returns the numbers of the claims that exist, sorted."""
    return list(_modules())


def load_claim(number: int | str) -> Claim:
    """Returns the claim of a paper.

    Args:
        number: The paper's number: 3, "3" or "03".

    Raises:
        UnknownName: If there is no such claim; the message lists those that exist.
        InvalidValue: If the file's claim bears another number than the file.
    """
    text = str(number).strip()
    wanted = int(text) if text.isdecimal() else None
    if wanted is None or wanted not in _modules():
        raise UnknownName("claim", text, [*(f"{each:02d}" for each in _modules()), "all"])
    module = importlib.import_module(f"{__package__}.{_modules()[wanted]}")
    claim: Claim = module.CLAIM
    if claim.number != wanted:
        raise InvalidValue(f"{module.__name__} holds claim {claim.number}; rename the file")
    return claim
