"""Measure calls mode beside VizTracer and cProfile: the second half of ``make bench``."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys

from typing import TYPE_CHECKING, Any

import calls_long
import calls_speed

from calls_process import TracerError
from calls_programs import PROGRAMS
from calls_pythons import NoPythonError, facts, ready
from calls_tracers import TRACERS
from report import missing, print_table
from surroundings import session


if TYPE_CHECKING:
    from collections.abc import Iterator

    from report import Row

    Table = tuple[str, list[Row], list[dict[str, Any]]]

PYTHONS = ("3.11", "3.12", "3.13")
SECTIONS = ("speed", "exact", "decode")


def main() -> None:
    """Read the command line, measure, print tables and write a file."""
    options = _options()
    pythons: dict[str, Any] = {}
    unmet: list[Row] = []
    with session("calls", {"options": vars(options), "pythons": pythons}) as (_, sections):
        for version in options.pythons:
            for title, rows, raw in _tables(version, options, pythons):
                print_table(title, rows)
                sys.stdout.flush()
                sections[title] = {"rows": [each.to_dict() for each in rows], "raw": raw}
                unmet += [
                    dataclasses.replace(each, what=f"{title}: {each.what}")
                    for each in rows
                    if not each.is_met
                ]
        if unmet:
            print_table("Not as aimed at", unmet)
        else:
            print("\nEverything is as aimed at.")


def _tables(version: str, options: argparse.Namespace, pythons: dict[str, Any]) -> Iterator[Table]:
    name = f"CPython {version}"
    try:
        python = ready(version)
        pythons[version] = facts(python)
    except NoPythonError as error:
        yield name, [missing("all of it", str(error), "a number")], []
        return
    for title, measure, *arguments in _sections(options):
        try:
            rows, raw = measure(python, *arguments)
        except TracerError as error:
            rows, raw = [missing("all of it", str(error), "a number")], []
        yield f"{name}, {title}", rows, raw


def _sections(options: argparse.Namespace) -> Iterator[tuple[Any, ...]]:
    """Tell the title, the function and the arguments of each table."""
    if "speed" in options.only:
        for program in options.workloads:
            yield (
                f"{program}: what a call costs",
                calls_speed.measure,
                program,
                options.variants,
                options.rounds,
                options.repetitions,
            )
    for section, (millions, rounds, target) in options.long.items():
        for tracer in calls_speed.OURS:
            if section in options.only and tracer in options.variants:
                yield (
                    f"{tracer}, {section}: {millions} million calls",
                    calls_long.measure,
                    tracer,
                    millions * 1_000_000,
                    rounds,
                    target,
                )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure calls mode; takes about an hour.")
    parser.add_argument("--pythons", nargs="+", default=PYTHONS, help="minor versions")
    parser.add_argument("--only", nargs="+", default=SECTIONS, choices=SECTIONS)
    parser.add_argument(
        "--workloads",
        nargs="+",
        default=[name for name in PROGRAMS if name != "all"],
        choices=PROGRAMS,
        help="of the section speed",
    )
    parser.add_argument(
        "--variants", nargs="+", default=list(TRACERS), choices=TRACERS, help="what is compared"
    )
    parser.add_argument("--rounds", type=int, help="of new processes (default: 12)")
    parser.add_argument("--repetitions", type=int, help="in a process (default: 5)")
    parser.add_argument("--quick", action="store_true", help="too short to say anything")
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 12)
    options.repetitions = options.repetitions or (2 if options.quick else 5)
    if min(options.rounds, options.repetitions) < 1:
        parser.error("a measurement needs rounds and repetitions: choose 10 rounds or more.")
    if calls_speed.PLAIN not in options.variants:
        options.variants = [calls_speed.PLAIN, *options.variants]  # nothing says much without it
    if "calls" in options.variants and os.geteuid():
        parser.error("calls mode's probes need root: run this as root, or leave calls out.")
    # Millions of calls, rounds, and the seconds that decoding may take.
    options.long = (
        {"exact": (1, 1, ""), "decode": (1, 1, "<= 0.4")}
        if options.quick
        else {"exact": (20, 2, ""), "decode": (10, 5, "<= 4")}
    )
    return options


if __name__ == "__main__":
    main()
