"""What the magic adds to a cell that does nothing, in a real Jupyter kernel."""

from __future__ import annotations

import ast
import sys
import time

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import KernelManager
from report import Row, row


if TYPE_CHECKING:
    from collections.abc import Iterator

EMPTY = "pass"
MAGIC = "%%pystack\npass"
# Leaves thousands of distinct stacks behind, in the collector and in the kernel process.
BUSY = """%%pystack --hz 4999 --quiet
import ast, inspect, time
until = time.process_time() + 1
while time.process_time() < until:
    ast.unparse(ast.parse(inspect.getsource(ast)))
"""
# The same steps by the public interface, timed from inside.
SPLIT = """
import time
from pystack_nb import PyStackProfiler
profiler = PyStackProfiler()
times = [time.perf_counter()]
profiler.start_profiling()
times.append(time.perf_counter())
recording = profiler.stop_profiling()
times.append(time.perf_counter())
recording._repr_mimebundle_()
times.append(time.perf_counter())
[after - before for before, after in zip(times, times[1:])]
"""
STEPS = ("start", "stop and decode", "show")

_PLAIN_CELLS = 5
_TIMEOUT = 60


class _ThisPython(KernelSpecManager):
    """Knows one kernel, whatever kernels are installed."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        argv += ["--IPKernelApp.log_level=ERROR"]  # its warnings are not about what is measured
        return KernelSpec(argv=argv, display_name=kernel_name, language="python")


class Kernel:
    """A running kernel under the Python of this process."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def run(self, code: str) -> tuple[float, str]:
        """Run a cell; return the seconds from the request to the kernel's being idle, and Out."""
        begin = time.perf_counter()
        request = self._client.execute(code, allow_stdin=False)
        value = ""
        while True:
            message = self._client.get_iopub_msg(timeout=_TIMEOUT)
            if message["parent_header"].get("msg_id") != request:
                continue
            content = message["content"]
            if message["msg_type"] == "error":
                raise RuntimeError("\n".join(content["traceback"]))
            if message["msg_type"] == "execute_result":
                value = content["data"]["text/plain"]
            if content.get("execution_state") == "idle":
                break
        seconds = time.perf_counter() - begin
        self._client.get_shell_msg(timeout=_TIMEOUT)
        return seconds, value


@contextmanager
def kernel() -> Iterator[Kernel]:
    """Start a kernel that has run a few cells, and end it."""
    manager = KernelManager(kernel_spec_manager=_ThisPython())
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=_TIMEOUT)
        yield Kernel(client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel()


def measure(kernels: int, pairs: int) -> tuple[list[Row], list[dict[str, Any]]]:
    """Time an empty cell with and without the magic.

    Parameters
    ----------
    kernels
        How many are started, each for one first cell.
    pairs
        Warm pairs, shared out over the kernels; which of a pair comes first alternates.

    Returns
    -------
    rows : list of Row
        What the magic added.
    raw : list of dict
        All times, one dict a kernel.
    """
    raw = []
    for number in range(kernels):
        with kernel() as fresh:
            told: dict[str, Any] = {"kernel": number}
            told["plain_s"] = [fresh.run(EMPTY)[0] for _ in range(_PLAIN_CELLS)]
            told["load_ext_s"] = fresh.run("%load_ext pystack_nb")[0]
            told["first_s"] = fresh.run(MAGIC)[0]
            fresh.run(MAGIC)  # the second still imports and compiles a little
            told["warm"] = [
                _pair(fresh, number) for number in range(len(range(number, pairs, kernels)))
            ]
            fresh.run(BUSY)
            told["after_busy"] = _pair(fresh, 0)
            told["split_s"] = [ast.literal_eval(fresh.run(SPLIT)[1]) for _ in range(3)]
            raw.append(told)
    return _rows(raw), raw


def _pair(kernel: Kernel, number: int) -> dict[str, float]:
    times = {}
    for code in (EMPTY, MAGIC) if number % 2 else (MAGIC, EMPTY):
        times[code] = kernel.run(code)[0]
    return {"plain_s": times[EMPTY], "magic_s": times[MAGIC]}


def _rows(raw: list[dict[str, Any]]) -> list[Row]:
    plain = [sorted(x["plain_s"])[_PLAIN_CELLS // 2] for x in raw]
    warm = [x for told in raw for x in told["warm"]]
    first = [told["first_s"] - x for told, x in zip(raw, plain, strict=True)]
    split = [steps for told in raw for steps in told["split_s"]]
    return [
        row("first %%pystack in a kernel adds", "s", first, "<= 1.5"),
        row("a warm %%pystack adds", "ms", [_ms(x) for x in warm], "<= 60"),
        row("an empty %%pystack after a busy one adds", "ms", [_ms(x["after_busy"]) for x in raw]),
        row("the cell without it", "ms", [1000 * x["plain_s"] for x in warm]),
        row("%load_ext pystack_nb", "ms", [1000 * x["load_ext_s"] for x in raw]),
        *(
            row(f"warm, from inside: {step}", "ms", [1000 * steps[n] for steps in split])
            for n, step in enumerate(STEPS)
        ),
    ]


def _ms(pair: dict[str, float]) -> float:
    return 1000 * (pair["magic_s"] - pair["plain_s"])
