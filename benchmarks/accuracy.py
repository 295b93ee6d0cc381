"""How right the shares of CPU time are."""

from __future__ import annotations

import math

from typing import TYPE_CHECKING, Any

from peers import PySpy, Target
from report import Row, rotated, row
from shares import NAMES, OTHER, burn_shares
from slowdown import HZ, PY_SPY_HZ


if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

CONDITIONS = ("pystack_nb", "py-spy")
_CLASSES = (*NAMES, OTHER)


def measure(rounds: int, seconds: float, folder: Path) -> tuple[list[Row], list[dict[str, Any]]]:
    """Sample a program of known shares with each sampler in each round.

    Both are judged by the same rule: of the samples in which the program was on the stack, to
    which function does the innermost Python frame belong?

    Returns
    -------
    rows : list of Row
        Sums of the absolute differences between sampled and true shares.
    raw : list of dict
        All that was told.
    """
    raw = []
    with Target() as target:
        for number in range(rounds):
            for condition in rotated(CONDITIONS, number):
                told = _sampled(condition, target, seconds, folder)
                raw.append({"round": number, "condition": condition, **told})
    return _rows(raw), raw


def _sampled(condition: str, target: Target, seconds: float, folder: Path) -> dict[str, Any]:
    if condition == "pystack_nb":
        return target.ask("known", seconds=seconds, hz=HZ)
    inside = burn_shares.__name__
    with PySpy.attached(target.pid, PY_SPY_HZ, folder, inside) as spy:
        told = target.ask("known", seconds=seconds)
    counts = {name: spy.counts.pop(name, 0) for name in NAMES}
    return told | spy.facts | {"counts": counts | {OTHER: spy.counts.total()}}


def _rows(raw: list[dict[str, Any]]) -> list[Row]:
    rows = []
    for condition in CONDITIONS:
        found = [x for x in raw if x["condition"] == condition]
        errors = [_error(x["counts"], x["true_ns"]) for x in found]
        pooled = _error(_sum(x["counts"] for x in found), _sum(x["true_ns"] for x in found))
        functions = [_error(x["counts"], x["true_ns"], NAMES) for x in found]
        chance = [_chance(x["true_ns"], sum(x["counts"].values())) for x in found]
        rows += [
            row(f"{condition}: error of a round", "", errors),
            row(f"{condition}: error among the six functions alone", "", functions),
            row(f"{condition}: expected from chance alone", "", chance),
            row(f"{condition}: error of all rounds together", "", [pooled]),
            row(f"{condition}: samples of a round", "", [sum(x["counts"].values()) for x in found]),
        ]
    return rows


def _sum(dictionaries: Any) -> dict[str, float]:
    total = dict.fromkeys(_CLASSES, 0.0)
    for each in dictionaries:
        for name in _CLASSES:
            total[name] += each[name]
    return total


def _error(
    counts: Mapping[str, float], true: Mapping[str, float], among: Sequence[str] = _CLASSES
) -> float:
    sampled, spent = sum(counts[name] for name in among), sum(true[name] for name in among)
    return sum(abs(counts[name] / sampled - true[name] / spent) for name in among)


def _chance(true: Mapping[str, float], samples: int) -> float:
    """Mean error if each sample were drawn on its own: of a normal variable, sqrt(2/pi) sigma."""
    spent = sum(true.values())
    shares = [true[name] / spent for name in _CLASSES]
    return sum(math.sqrt(2 / math.pi * p * (1 - p) / samples) for p in shares)
