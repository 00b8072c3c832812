"""Fails unless the skipped tests are exactly those of the list in the repository.

Usage: skipped.py JUNIT_XML LIST. The list has two headings, "# always" and "# without
SPARSECRAFT_DATA"; the tests under the second are skipped where that variable is not set.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from xml.etree import ElementTree

ALWAYS, WITHOUT_DATA = "# always", "# without SPARSECRAFT_DATA"


def skipped(report: Path) -> set[str]:
    """Returns the ids of the tests that a pytest JUnit report calls skipped."""
    cases = ElementTree.parse(report).getroot().iter("testcase")
    return {
        f"{c.get('classname')}::{c.get('name')}" for c in cases if c.find("skipped") is not None
    }


def expected(listing: Path, *, with_data: bool) -> set[str]:
    """Returns the ids that the list allows, and demands, for this machine."""
    found: dict[str, set[str]] = {ALWAYS: set(), WITHOUT_DATA: set()}
    heading = ALWAYS
    for line in filter(None, map(str.strip, listing.read_text().splitlines())):
        if line in found:
            heading = line
        elif not line.startswith("#"):
            found[heading].add(line)
    return found[ALWAYS] if with_data else found[ALWAYS] | found[WITHOUT_DATA]


def main(report: str, listing: str) -> int:
    """Prints what differs and returns 1 if anything does."""
    found = skipped(Path(report))
    wanted = expected(Path(listing), with_data=bool(os.environ.get("SPARSECRAFT_DATA")))
    for name in sorted(found - wanted):
        sys.stderr.write(f"skipped, but not in {listing}: {name}\n")
    for name in sorted(wanted - found):
        sys.stderr.write(f"in {listing}, but not skipped: {name}\n")
    return int(found != wanted)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
