"""The least that sampling costs: a perf event on each thread's clock, and an empty BPF program.

Runs under the distribution's Python, whose BCC loads it as the collector loads its own program,
and sets it on the threads of a process as the collector does.
Lines on the standard input: a rate and a pid attach it, 0 0 detaches it; each is answered.
"""

import os
import sys

from pathlib import Path


os.environ["BCC_KERNEL_SOURCE"] = str(Path(__file__).resolve().parents[1] / "bpf")

import bcc  # it looks at the environment when it is imported


PROGRAM = b"""
#include <linux/bpf_perf_event.h>
int nothing(struct bpf_perf_event_data *context) { return 0; }
"""


def attach(program: int, pid: int, hz: int) -> list[int]:
    """Set a timer on each thread; those made later inherit it."""
    events = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        event = bcc.lib.bpf_attach_perf_event(
            program,
            bcc.PerfType.SOFTWARE,
            bcc.PerfSWConfig.CPU_CLOCK,
            0,
            hz,
            int(thread.name),
            -1,
            -1,
        )
        if event < 0:
            raise OSError(f"no event on thread {thread.name}")
        events.append(event)
    return events


def main() -> None:
    """Attach and detach as told, until the input ends."""
    bpf = bcc.BPF(text=PROGRAM)
    program = bpf.load_func(b"nothing", bcc.BPF.PERF_EVENT).fd
    events: list[int] = []
    print("loaded", flush=True)
    for line in sys.stdin:
        hz, pid = map(int, line.split())
        while events:
            bcc.lib.bpf_close_perf_event_fd(events.pop())
        if hz:
            events = attach(program, pid, hz)
        print(f"at {hz} Hz", flush=True)


if __name__ == "__main__":
    main()
