"""How much slower a workload runs while it is sampled."""

from __future__ import annotations

import contextlib

from typing import TYPE_CHECKING, Any

from peers import Floor, PySpy, Target
from report import Row, rotated, row


if TYPE_CHECKING:
    from pathlib import Path

    from sampling import Size

HZ = 999
PY_SPY_HZ = 1000
CONDITIONS = ("plain", "floor", "pystack_nb", "py-spy")
# py-spy takes long to attach; without it the conditions follow each other so closely that the
# moods of the machine, which last for seconds, are the same for all of a round.
CLOSE_CONDITIONS = ("plain", "floor", "pystack_nb")
CLOSE_REPETITIONS = 8
CLOSE_ROUNDS_A_PROCESS = 30


def measure(workload: str, size: Size, folder: Path) -> tuple[list[Row], list[dict[str, Any]]]:
    """Run the conditions side by side.

    A round is one block of repetitions under each condition, in one process, so that what
    differs from process to process does not matter; now and then there is a new one.

    Returns
    -------
    rows : list of Row
        The times of a round, divided by its plain one; then, of many short rounds without
        py-spy, those of each round's fastest repetition.
    raw : list of dict
        All that was told.
    """
    with Floor() as floor:
        plan = _Plan(workload, floor, folder)
        long = plan.run(CONDITIONS, size.rounds, size.repetitions, len(CONDITIONS))
        close = plan.run(
            CLOSE_CONDITIONS, size.close_rounds, CLOSE_REPETITIONS, CLOSE_ROUNDS_A_PROCESS
        )
    if len({told["checksum"] for told in long + close}) != 1:
        raise ValueError(f"{workload} did not do the same work each time: mend the workload")
    return [*_rows(long), *_close_rows(close)], long + close


class _Plan:
    def __init__(self, workload: str, floor: Floor, folder: Path) -> None:
        self._workload = workload
        self._floor = floor
        self._folder = folder

    def run(
        self, conditions: tuple[str, ...], rounds: int, repetitions: int, rounds_a_process: int
    ) -> list[dict[str, Any]]:
        raw: list[dict[str, Any]] = []
        request = {"workload": self._workload, "repetitions": repetitions}
        with contextlib.ExitStack() as stack:
            for number in range(rounds):
                if number % rounds_a_process == 0:
                    stack.close()
                    target = stack.enter_context(Target())
                    target.ask("block", **request)  # warm-up
                for condition in rotated(conditions, number):
                    told = _block(condition, target, self._floor, self._folder, request)
                    raw.append({"round": number, "condition": condition, **told})
        return raw


def _block(
    condition: str, target: Target, floor: Floor, folder: Path, request: dict[str, Any]
) -> dict[str, Any]:
    if condition == "floor":
        with floor.attached(target.pid, HZ):
            return target.ask("block", **request)
    if condition == "pystack_nb":
        used = target.collector_cpu_s()
        told = target.ask("block", **request, hz=HZ)
        return told | {"agent_cpu_s": target.collector_cpu_s() - used}
    if condition == "py-spy":
        with PySpy.attached(target.pid, PY_SPY_HZ, folder) as spy:
            told = target.ask("block", **request)
        return told | spy.facts
    return target.ask("block", **request)


def _close_rows(raw: list[dict[str, Any]]) -> list[Row]:
    fastest = {
        name: [min(x["wall_s"]) for x in raw if x["condition"] == name] for name in CLOSE_CONDITIONS
    }
    plain = fastest["plain"]
    floor, ours = (
        [x / y for x, y in zip(fastest[name], plain, strict=True)] for name in CLOSE_CONDITIONS[1:]
    )
    # Each condition's own fastest tenth: what it costs while the machine does nothing else.
    least = {name: sorted(times)[len(times) // 10] for name, times in fastest.items()}
    return [
        row("close rounds: floor", "x", floor),
        row("close rounds: pystack_nb", "x", ours),
        row("close rounds: pystack_nb - floor", "", _less(ours, floor), "<= 0.01"),
        row(
            "close rounds, quietest tenth: pystack_nb - floor",
            "",
            [(least["pystack_nb"] - least["floor"]) / least["plain"]],
            "<= 0.01",
        ),
    ]


def _less(one: list[float], other: list[float]) -> list[float]:
    return [x - y for x, y in zip(one, other, strict=True)]


def _rows(raw: list[dict[str, Any]]) -> list[Row]:
    def ratios(clock: str) -> dict[str, list[float]]:
        times = {
            name: [sum(x[clock]) for x in raw if x["condition"] == name] for name in CONDITIONS
        }
        return {
            name: [x / plain for x, plain in zip(times[name], times["plain"], strict=True)]
            for name in CONDITIONS[1:]
        }

    wall, cpu = ratios("wall_s"), ratios("cpu_s")
    agents = {
        name: [x["agent_cpu_s"] / sum(x["wall_s"]) for x in raw if x["condition"] == name]
        for name in ("pystack_nb", "py-spy")
    }
    ours, theirs, least = wall["pystack_nb"], wall["py-spy"], wall["floor"]
    found = [x for x in raw if x["condition"] == "pystack_nb"]
    return [
        row(f"empty BPF program, {HZ} Hz (the floor)", "x", least),
        row(f"pystack_nb, {HZ} Hz", "x", ours),
        row(f"py-spy record -r {PY_SPY_HZ}", "x", theirs),
        row("pystack_nb - floor", "", _less(ours, least), "<= 0.01"),
        row("pystack_nb - py-spy", "", _less(ours, theirs), "< 0"),
        *(row(f"{name}, by CPU time", "x", cpu[name]) for name in CONDITIONS[1:]),
        row("pystack_nb - floor, by CPU time", "", _less(cpu["pystack_nb"], cpu["floor"])),
        row("collector's own CPU time", "of a CPU", agents["pystack_nb"]),
        row("py-spy's own CPU time", "of a CPU", agents["py-spy"]),
        row("pystack_nb: lost samples", "", [x["lost"] for x in found], "0"),
        row("pystack_nb: incomplete samples", "", [x["incomplete"] for x in found]),
    ]
