"""Which rate is reached on a busy thread."""

from __future__ import annotations

from typing import Any

from peers import Target
from report import Row, rotated, row


RATES = (999, 4999, 9999)


def measure(rounds: int, seconds: float) -> tuple[list[Row], list[dict[str, Any]]]:
    """Sample a thread that uses `seconds` of CPU time, at each rate in each round.

    Returns
    -------
    rows : list of Row
        Samples of the thread in a second of its CPU time, as a share of the rate asked for.
    raw : list of dict
        All that was told.
    """
    raw = []
    with Target() as target:
        for number in range(rounds):
            for hz in rotated(RATES, number):
                told = target.ask("busy", seconds=seconds, hz=hz)
                raw.append({"round": number, "hz": hz, **told})
    rows = []
    for hz in RATES:
        found = [x for x in raw if x["hz"] == hz]
        shares = [100 * x["counted"] / x["cpu_s"] / hz for x in found]
        rows += [
            row(f"{hz} Hz: rate reached", "%", shares, ">= 98"),
            row(f"{hz} Hz: lost samples", "", [x["lost"] for x in found], "0"),
            row(f"{hz} Hz: incomplete samples", "", [x["incomplete"] for x in found]),
        ]
    return rows, raw
