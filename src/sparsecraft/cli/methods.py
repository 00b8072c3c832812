"""`sparsecraft methods`: the catalog as a table, one method as a page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sparsecraft.cli.parser import Parser
from sparsecraft.cli.terminal import console, say
from sparsecraft.core.errors import InvalidValue

if TYPE_CHECKING:
    from sparsecraft.core.catalog import MethodInfo

RESUME = "Nothing was changed."
# The taxonomy's values stand in core.catalog; they are checked there, with the closest ones named.
_FILTERS = ("of", "when", "criterion", "start-to-end", "granularity", "runtime", "needs", "without")


def parser() -> Parser:
    """Returns the parser of this verb."""
    made = Parser(
        prog="sparsecraft methods",
        description=(
            "Shows the catalog: which methods there are, which paper each is from, what it needs\n"
            "and what it can save; or everything about one of them, options included.\n\n"
            "examples:\n"
            "  sparsecraft methods\n"
            "  sparsecraft methods wanda\n"
            "  sparsecraft methods ./mine.py:Mine\n"
            '  sparsecraft methods --when "after training" --without data'
        ),
    )
    made.add_argument("name", nargs="?", metavar="NAME", help="a method, or FILE.py:CLASS")
    for option in _FILTERS:
        text = f"only methods whose taxonomy says this of {option!r}"
        if option == "without":
            text = 'only methods that do not need this, for example "data" or "gradients"'
        made.add_argument(f"--{option}", metavar="VALUE", help=text)
    made.add_argument(
        "--markdown", type=Path, metavar="DIR", help="write the reference pages into this folder"
    )
    return made


def run(arguments: argparse.Namespace) -> int:
    """Prints the table or the page, and returns 0."""
    from sparsecraft.core import catalog

    fields = [option.replace("-", "_") for option in _FILTERS]
    wanted = {field: getattr(arguments, field) for field in fields if getattr(arguments, field)}
    if arguments.name and (wanted or arguments.markdown):
        raise InvalidValue(
            f"{arguments.name} shows one method: leave the other options out, or leave the name out"
        )
    if arguments.markdown:
        from sparsecraft.cli.method_pages import write

        written = write(catalog.select(**wanted), arguments.markdown)
        say(f"{len(written)} pages in {arguments.markdown}")
    elif arguments.name:
        from rich.markdown import Markdown

        from sparsecraft.cli.method_pages import page

        console().print(Markdown(page(catalog.get(arguments.name))))
    else:
        _print_table(catalog.select(**wanted))
    return 0


def _print_table(methods: list[MethodInfo]) -> None:
    from rich.table import Table

    table = Table("method", "what it does", "paper", "when", "criterion", "needs", "can save")
    table.columns[0].no_wrap = True
    for info in methods:
        table.add_row(
            info.name,
            info.summary,
            str(info.paper),
            info.taxonomy.when,
            info.taxonomy.criterion,
            ", ".join(info.taxonomy.needs) or "nothing",
            info.taxonomy.runtime,
        )
    console().print(table)
    console().print(
        f"{len(methods)} methods. `sparsecraft methods NAME` shows one with its options."
    )
