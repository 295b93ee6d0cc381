"""Fixed pieces of work, the same each time; each returns a checksum."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from collections.abc import Callable


class Packet:
    """What tasks hand to each other."""

    __slots__ = ("kind", "value")

    def __init__(self, kind: int, value: int) -> None:
        self.kind = kind
        self.value = value


class Task:
    """Something that a scheduler lets run, a step at a time, while it has packets."""

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.inbox: deque[Packet] = deque()
        self.total = 0

    def give(self, packet: Packet) -> None:
        """Queue a packet."""
        self.inbox.append(packet)

    def is_ready(self) -> bool:
        """Tell whether there is something to do."""
        return bool(self.inbox)

    def step(self, scheduler: Scheduler) -> None:
        """Do it."""
        raise NotImplementedError


class Source(Task):
    """Makes packets, of kinds that a shift register chooses."""

    def __init__(self, priority: int, count: int) -> None:
        super().__init__(priority)
        self.left = count
        self.register = 0xACE1

    def is_ready(self) -> bool:
        """Tell whether packets are left to make."""
        return self.left > 0

    def step(self, scheduler: Scheduler) -> None:
        """Make one packet."""
        self.left -= 1
        self.register = self.shifted(self.register)
        scheduler.send(Packet(self.register & 1, self.register))

    @staticmethod
    def shifted(register: int) -> int:
        """Return the next state of a linear-feedback shift register of 16 bits."""
        return (register >> 1) ^ 0xB400 if register & 1 else register >> 1


class Worker(Task):
    """Changes a packet's value and sends it on."""

    def step(self, scheduler: Scheduler) -> None:
        """Handle one packet."""
        packet = self.inbox.popleft()
        packet.value = self.mixed(packet.value)
        packet.kind = 2
        scheduler.send(packet)

    def mixed(self, value: int) -> int:
        """Return a number that depends on each digit of `value`."""
        for shift in (1, 3, 7):
            value = (value ^ (value << shift)) & 0xFFFF
        self.total += value
        return value


class Sink(Task):
    """Adds up what arrives."""

    def step(self, scheduler: Scheduler) -> None:
        """Take one packet."""
        self.total = (self.total * 31 + self.inbox.popleft().value) & 0xFFFFFFFF
        scheduler.done += 1


class Scheduler:
    """Runs the ready task of the highest priority until none is ready."""

    def __init__(self, tasks: list[Task]) -> None:
        self.tasks = sorted(tasks, key=lambda task: -task.priority)
        self.routes = tasks
        self.done = 0

    def send(self, packet: Packet) -> None:
        """Hand a packet to the task for its kind."""
        self.routes[packet.kind].give(packet)

    def pick(self) -> Task | None:
        """Return the next task to run."""
        for task in self.tasks:
            if task.is_ready():
                return task
        return None

    def run(self) -> None:
        """Run until nothing is left."""
        while (task := self.pick()) is not None:
            task.step(self)


def richards(packets: int = 6_000) -> int:
    """Simulate the scheduler of a small operating system: pure Python, calls, shallow stacks.

    In the spirit of Martin Richards' benchmark, not a port of it.
    """
    workers: list[Task] = [Worker(20), Worker(30)]
    sink = Sink(40)
    scheduler = Scheduler([*workers, sink, Source(10, packets)])
    scheduler.run()
    return hash((scheduler.done, sink.total, *(task.total for task in workers)))


_RANDOM = np.random.default_rng(7)
_MATRIX = _RANDOM.standard_normal((160, 160))
_VECTOR = _RANDOM.standard_normal(30_000)


def numerical(rounds: int = 20) -> int:
    """Spend the time in NumPy's native code, in calls of 10 to 1,000 microseconds."""
    checksum = 0
    for number in range(rounds):
        product = _MATRIX @ (_MATRIX + number)
        ordered = np.sort(_VECTOR * (number + 1))
        spectrum = np.abs(np.fft.rfft(_VECTOR))
        positive = np.cumsum(ordered[ordered > 0])
        checksum += int(product[3, 5] * 1000) + int(spectrum[17] * 1000) + len(positive)
    return checksum


WORKLOADS: dict[str, Callable[[], int]] = {"richards": richards, "numpy": numerical}
