"""A task whose attributes are known: who receives, when one of two people gives something.

"Then Ann and Ben went to the park. Ben gave a book to" is continued by Ann: the indirect object
(io), whose name stands once, not the subject (s), whose name stands twice; `io_first` says which of
the two was named first. All prompts have one length, so that nodes are at fixed positions. Names of
changed prompts come from another half than those of the prompts, so that no edit can profit from a
name that was in its own prompt.

Sentences, objects and places are our own; the task is Wang et al.'s (2022), used by Makelov et al.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparsecraft.core.errors import InvalidValue, UnknownName
from sparsecraft.core.seeds import generator

Attribute = Literal["io", "s", "io_first"]
ATTRIBUTES: tuple[Attribute, ...] = ("io", "s", "io_first")

NAMES = (
    "Ada", "Amir", "Anna", "Ben", "Bruno", "Carla", "Chen", "Clara", "Dana", "David", "Elif",
    "Emil", "Eva", "Finn", "Greta", "Hugo", "Ida", "Ivan", "Jana", "Jonas", "Kofi", "Lea", "Lin",
    "Luca", "Mara", "Milo", "Nora", "Omar", "Paula", "Rosa", "Sami", "Vera",
)  # fmt: skip
PLACES = ("park", "station", "market", "library", "harbour", "office", "school", "garden")
OBJECTS = ("book", "ring", "letter", "map", "key", "lamp", "ball", "coin")
TEMPLATES = (
    "Then {first} and {second} went to the {place} . {s} gave a {object} to",
    "When {first} and {second} met at the {place} , {s} handed a {object} to",
    "After {first} and {second} left for the {place} , {s} passed a {object} to",
    "While {first} and {second} sat in the {place} . {s} lent a {object} to",
)


def _words() -> tuple[str, ...]:
    fixed = {word for text in TEMPLATES for word in text.split() if not word.startswith("{")}
    return (*NAMES, *PLACES, *OBJECTS, *sorted(fixed))


WORDS = _words()
"""The vocabulary: a token for each word; names come first, so a name's number is its token."""
LENGTH = len(TEMPLATES[0].split())


@dataclass(frozen=True)
class Prompts:
    """Prompts of one length with what is known of them.

    Args:
        tokens: int64 (rows, LENGTH).
        io: int64 (rows,), the name that receives: the right answer.
        s: int64 (rows,), the name that gives.
        io_first: int64 (rows,), 1 where the io was named first.
        setting: int64 (rows, 3), template, place and object.
    """

    tokens: Tensor
    io: Tensor
    s: Tensor
    io_first: Tensor
    setting: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def attributes(self) -> dict[str, Tensor]:
        """What a supervised dictionary is fitted to."""
        return {"io": self.io, "s": self.s, "io_first": self.io_first}

    def rows(self, index: Tensor) -> Prompts:
        """Returns the prompts with these numbers."""
        return Prompts(
            self.tokens[index], self.io[index], self.s[index], self.io_first[index],
            self.setting[index],
        )  # fmt: skip

    def text(self, row: int) -> str:
        """Returns a prompt in words."""
        return " ".join(WORDS[token] for token in self.tokens[row].tolist())


def halves(seed: int) -> tuple[Tensor, Tensor]:
    """Returns two disjoint halves of the names, int64."""
    shuffled = torch.randperm(len(NAMES), generator=generator(seed, "ioi", "names"))
    middle = len(NAMES) // 2
    return shuffled[:middle].sort().values, shuffled[middle:].sort().values


def prompts(count: int, seed: int, names: Tensor | None = None, label: str = "prompts") -> Prompts:
    """Returns prompts, half of them with the io first.

    Args:
        count: How many, an even number.
        seed: Of what is drawn.
        names: int64, which names may stand in them; by default all.
        label: Another label gives other prompts.

    Raises:
        InvalidValue: If the count is odd, or there are fewer than two names.
    """
    names = torch.arange(len(NAMES)) if names is None else names
    if count < 2 or count % 2 or len(names) < 2:
        raise InvalidValue(
            f"count={count} with {len(names)} names is not allowed: give an even count and at "
            "least two names"
        )
    draw = generator(seed, "ioi", label)
    io = torch.randint(len(names), (count,), generator=draw)
    # Of the other names, so that the two differ.
    s = (io + torch.randint(1, len(names), (count,), generator=draw)) % len(names)
    setting = torch.stack(
        [
            torch.randint(len(each), (count,), generator=draw)
            for each in (TEMPLATES, PLACES, OBJECTS)
        ],
        1,
    )
    io_first = torch.arange(count) % 2
    return _written(names[io], names[s], io_first, setting)


def changed(
    given: Prompts, attribute: Attribute, seed: int, names: Tensor | None = None
) -> Prompts:
    """Returns the same prompts with exactly one attribute changed.

    Args:
        given: The prompts.
        attribute: "io" or "s": another name; "io_first": the two in the other order.
        seed: Of the new names.
        names: int64, where new names come from; by default all. They are never one of the two that
            stand in the prompt.

    Raises:
        UnknownName: For another attribute.
        InvalidValue: If there are not enough names.
    """
    if attribute not in ATTRIBUTES:
        raise UnknownName("attribute", str(attribute), ATTRIBUTES)
    if attribute == "io_first":
        return _written(given.io, given.s, 1 - given.io_first, given.setting)
    names = torch.arange(len(NAMES)) if names is None else names
    if len(names) < 3:
        raise InvalidValue(f"{len(names)} names are not enough to find another: give at least 3")
    draw = generator(seed, "ioi", "changed", attribute)
    order = torch.rand(len(given), len(names), generator=draw)
    taken = (names == given.io[:, None]) | (names == given.s[:, None])
    new = names[order.masked_fill(taken, -1.0).argmax(1)]
    io, s = (new, given.s) if attribute == "io" else (given.io, new)
    return _written(io, s, given.io_first, given.setting)


def _written(io: Tensor, s: Tensor, io_first: Tensor, setting: Tensor) -> Prompts:
    """Returns the prompts of these attributes."""
    number = {word: place for place, word in enumerate(WORDS)}
    blank = {"{first}": -1, "{second}": -2, "{s}": -3, "{place}": -4, "{object}": -5}
    forms = torch.tensor(
        [[number[word] if word in number else blank[word] for word in text.split()]
         for text in TEMPLATES]
    )  # fmt: skip
    tokens = forms[setting[:, 0]]
    fill = {
        -1: torch.where(io_first == 1, io, s),
        -2: torch.where(io_first == 1, s, io),
        -3: s,
        -4: len(NAMES) + setting[:, 1],
        -5: len(NAMES) + len(PLACES) + setting[:, 2],
    }
    for mark, values in fill.items():
        tokens = torch.where(tokens == mark, values[:, None], tokens)
    return Prompts(tokens, io, s, io_first, setting)
