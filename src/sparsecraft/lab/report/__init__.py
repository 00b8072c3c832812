"""The report of a comparison: one HTML file that opens anywhere, tidy rows, and the raw record."""

from __future__ import annotations

from pathlib import Path

from sparsecraft.lab.report.arms import Comparison
from sparsecraft.lab.report.files import as_csv, as_json, write_atomically
from sparsecraft.lab.report.page import render_page
from sparsecraft.lab.report.text import print_summary

__all__ = ["print_summary", "write_report"]


def write_report(comparison: Comparison, directory: Path) -> Path:
    """Writes `report.html`, `results.csv` and `comparison.json`, and returns the HTML's path.

    Each file is written whole or not at all, and the page last, so that a page always has its
    data beside it. The page needs no network and no other file.

    Args:
        comparison: The record of a comparison, with the keys of its version 1. A latency's
            `ratio` is dense time over the arm's time, so above 1 is faster; a layer's `asked` and
            `achieved` are densities; an arm's `asked`, `sparsity` and `sparsity_all` are
            sparsities; a drop is a fraction of dense, positive where the arm is worse. What was
            not measured may be None, NaN or absent.
        directory: Where the files go; made where it does not exist.

    Raises:
        MissingDependency: jinja2 is not installed.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    page = render_page(comparison)
    write_atomically(directory / "comparison.json", as_json(comparison))
    write_atomically(directory / "results.csv", as_csv(comparison))
    path = directory / "report.html"
    write_atomically(path, page)
    return path
