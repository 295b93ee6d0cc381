"""What is traced: programs that do little but call, and three of pyperformance's."""

from __future__ import annotations

import importlib.util

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple


if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType


class Program(NamedTuple):
    """Something that makes the same calls each time.

    Attributes
    ----------
    unit
        Does a piece of it.
    units
        How many of these make about half a million calls.
    """

    unit: Callable[[], object]
    units: int

    def work(self, units: int) -> None:
        """Do some units."""
        for _ in range(units):
            self.unit()


def program(name: str) -> Program:
    """Return one of `PROGRAMS`, ready to run."""
    return PROGRAMS[name]()


def _fib() -> Program:
    def fib(n: int) -> int:
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    return Program(lambda: fib(20), 23)


def _leaf() -> Program:
    def leaf(value: int) -> int:
        return value + 1

    def loop() -> None:
        value = 0
        for _ in range(20_000):
            value = leaf(value)

    return Program(loop, 25)


def _richards() -> Program:
    module = _pyperformance("richards")
    simulation, area = module.Richards(), module.taskWorkArea

    def unit() -> None:
        # Else it goes through the tasks of all earlier runs, too, and no run equals another.
        area.taskList = None
        simulation.run(1)

    return Program(unit, 1)


def _deltablue() -> Program:
    module = _pyperformance("deltablue")
    return Program(lambda: module.delta_blue(50), 19)


def _generators() -> Program:
    # Recursive ones, so that a value comes up through as many as the tree is deep there.
    tree = _pyperformance("generators").tree(range(2_000))

    def traverse() -> None:
        for _ in tree:
            pass

    return Program(traverse, 23)


def _all() -> Program:
    parts = [program(name) for name in PROGRAMS if name != "all"]

    def unit() -> None:
        for part in parts:
            part.work(part.units)

    return Program(unit, 1)


PROGRAMS: dict[str, Callable[[], Program]] = {
    "fib": _fib,
    "leaf": _leaf,
    "richards": _richards,
    "deltablue": _deltablue,
    "generators": _generators,
    "all": _all,
}


def _pyperformance(name: str) -> ModuleType:
    found = importlib.util.find_spec("pyperformance")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("there is no pyperformance: pip install pyperformance.")
    path = Path(found.origin).parent / "data-files" / "benchmarks" / f"bm_{name}"
    spec = importlib.util.spec_from_file_location(name, path / "run_benchmark.py")
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"pyperformance has no {name} at {path}.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
