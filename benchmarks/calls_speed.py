"""What a call costs in addition while someone traces it."""

from __future__ import annotations

import statistics

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from calls_process import Process, TracerError
from report import Row, missing, rotated, row


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

PLAIN = "plain"
UNTRACED = {"plain again": "", "idle": "<= 1.01"}  # and what is aimed at, beside plain
OURS = ("calls", "inprocess")
PEERS = {"viztracer": "<= 0.45", "viztracer, Python only": "<= 0.45", "cprofile": "< 1"}


def measure(
    python: Path, program: str, tracers: Sequence[str], rounds: int, repetitions: int
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Run a program under the tracers side by side.

    A round has a new process for each tracer; they take turns, one repetition each.

    Returns
    -------
    rows : list of Row
        What each adds to a call, by the median of a round's repetitions.
    raw : list of dict
        All that was told.
    """
    speed = _Speed(python, program)
    for number in range(rounds):
        speed.run(tracers, number, repetitions)
    return speed.rows(tracers), speed.raw


def miscounted(recorded: Mapping[str, int], true: Mapping[str, int]) -> dict[str, int]:
    """Return by how much the calls of functions differ, of those where they do."""
    differences = {name: recorded.get(name, 0) - true.get(name, 0) for name in {*recorded, *true}}
    return {name: difference for name, difference in differences.items() if difference}


class _Speed:
    def __init__(self, python: Path, program: str) -> None:
        self.raw: list[dict[str, Any]] = []
        self._python = python
        self._program = program
        self._why: dict[str, str] = {}
        with Process(python, program, "cprofile") as counter:
            self._units = counter.units
            self._calls = sum(counter.repeat(self._units, warm_up=0)["counts"].values())
            self._counts = counter.repeat(self._units)["counts"]

    def run(self, tracers: Sequence[str], number: int, repetitions: int) -> None:
        with ExitStack() as stack:
            processes: dict[str, Process] = {}
            for tracer in rotated(tracers, number):
                with self._noting(tracer):
                    process = Process(self._python, self._program, tracer)
                    processes[tracer] = stack.enter_context(process)
            for repetition in range(repetitions):
                for tracer in rotated(tuple(processes), repetition):
                    with self._noting(tracer):
                        self._repeat(processes[tracer], tracer, number)

    def rows(self, tracers: Sequence[str]) -> list[Row]:
        traced = [each for each in tracers if each not in (PLAIN, *UNTRACED)]
        ours = [each for each in OURS if each in tracers]
        return [
            self._row("plain: a call takes", "ns", [PLAIN], lambda plain: plain),
            *(
                self._row(f"{each} / plain", "x", [each, PLAIN], lambda x, y: x / y, target)
                for each, target in UNTRACED.items()
                if each in tracers
            ),
            *(
                self._row(f"{each} adds", "ns", [each, PLAIN], lambda x, y: x - y)
                for each in traced
            ),
            *(
                self._row(
                    f"{each} / {peer}, of what they add",
                    "x",
                    [each, peer, PLAIN],
                    lambda x, y, plain: (x - plain) / (y - plain),
                    target,
                )
                for each in ours
                for peer, target in PEERS.items()
                if peer in tracers
            ),
            *(row for each in ours for row in self._losses(each)),
        ]

    def _repeat(self, process: Process, tracer: str, number: int) -> None:
        told = process.repeat(self._units)
        told["ns_a_call"] = (told["end_ns"] - told["begin_ns"]) / self._calls
        if "counts" in told:
            told["miscounted"] = miscounted(told.pop("counts"), self._counts)
        self.raw.append({"tracer": tracer, "round": number, **told})

    @contextmanager
    def _noting(self, tracer: str) -> Iterator[None]:
        try:
            yield
        except TracerError as error:
            self._why.setdefault(tracer, str(error))

    def _row(
        self,
        what: str,
        unit: str,
        tracers: Sequence[str],
        compare: Callable[..., float],
        target: str = "",
    ) -> Row:
        # Who failed once has failed: its other rounds would pass for all of them.
        for tracer in tracers:
            if tracer in self._why:
                return missing(what, self._why[tracer], target)
        columns = (self._costs(tracer) for tracer in tracers)
        return row(what, unit, (compare(*each) for each in zip(*columns, strict=True)), target)

    def _costs(self, tracer: str) -> list[float]:
        rounds: dict[int, list[float]] = {}
        for told in self._told(tracer):
            rounds.setdefault(told["round"], []).append(told["ns_a_call"])
        return [statistics.median(costs) for costs in rounds.values()]

    def _losses(self, tracer: str) -> list[Row]:
        lost, wrong = f"{tracer}: lost", f"{tracer}: calls miscounted"
        if tracer in self._why:
            return [missing(what, self._why[tracer], "0") for what in (lost, wrong)]
        return [
            row(lost, "", [told["lost"] for told in self._told(tracer)], "0"),
            row(
                wrong,
                "",
                [sum(map(abs, told["miscounted"].values())) for told in self._told(tracer)],
                "0",
            ),
        ]

    def _told(self, tracer: str) -> list[dict[str, Any]]:
        return [told for told in self.raw if told["tracer"] == tracer]
