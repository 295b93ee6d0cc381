"""Measure sampling beside the floor, beside py-spy and beside the truth: ``make bench``."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys

from pathlib import Path
from typing import TYPE_CHECKING, Any

import accuracy
import cells
import rates
import slowdown

from peers import PY_SPY, SYSTEM_PYTHON
from report import print_table
from surroundings import session


if TYPE_CHECKING:
    from collections.abc import Callable

    from report import Row

    Section = Callable[["Size", Path], tuple[list[Row], list[dict[str, Any]]]]


class Size:
    """How much is measured.

    Parameters
    ----------
    rounds
        Interleaved rounds, or pairs, of each section.
    quick
        Whether the pieces of work are short, which is only good for trying the programs.
    """

    def __init__(self, rounds: int, *, quick: bool) -> None:
        self.rounds = rounds
        self.repetitions = 20 if quick else 80  # of about 15 ms
        self.close_rounds = 10 if quick else 20 * rounds
        self.busy_s = 0.5 if quick else 2.0
        self.known_s = 1.0 if quick else 5.0
        self.kernels = 1 if quick else 6
        self.pairs = max(rounds, 3 if quick else 30)


SECTIONS: dict[str, tuple[str, Section]] = {
    "richards": (
        "Slowdown of a pure-Python program (1 = not sampled)",
        lambda size, folder: slowdown.measure("richards", size, folder),
    ),
    "numpy": (
        "Slowdown of a NumPy program (1 = not sampled)",
        lambda size, folder: slowdown.measure("numpy", size, folder),
    ),
    "rates": (
        "Rate reached on a busy thread",
        lambda size, _: rates.measure(size.rounds, size.busy_s),
    ),
    "shares": (
        "Error of the shares of CPU time (sum of absolute differences)",
        lambda size, folder: accuracy.measure(size.rounds, size.known_s, folder),
    ),
    "cells": (
        "An empty cell in a Jupyter kernel",
        lambda size, _: cells.measure(size.kernels, size.pairs),
    ),
}


def main() -> None:
    """Read the command line, measure, print tables and write a file."""
    options = _options()
    size = Size(options.rounds or (2 if options.quick else 12), quick=options.quick)
    with session("sampling", _versions() | {"size": vars(size)}) as (folder, sections):
        for section in options.only or SECTIONS:
            title, measure = SECTIONS[section]
            rows, raw = measure(size, folder)
            print_table(title, rows)
            sys.stdout.flush()
            sections[section] = {
                "title": title,
                "rows": [each.to_dict() for each in rows],
                "raw": raw,
            }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure sampling; takes about ten minutes.")
    parser.add_argument("--rounds", type=int, help="of each section (default: 12)")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections, not all")
    parser.add_argument("--quick", action="store_true", help="too short to say anything")
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 1:
        parser.error("a measurement needs rounds: choose 10 or more.")
    for program, way in (
        (PY_SPY, "pip install -e '.[bench]' into the Python that runs this"),
        (Path(SYSTEM_PYTHON), "apt-get install python3 python3-bpfcc"),
    ):
        if not program.exists():
            parser.error(f"there is no {program}: {way}.")
    if os.geteuid():
        parser.error("the floor and py-spy need root: run this as root.")
    return options


def _versions() -> dict[str, Any]:
    packages = ("pystack-nb", "py-spy", "numpy", "pandas", "ipykernel")
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
