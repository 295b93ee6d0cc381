"""The BPF program under BCC: compiled and loaded once, attached for each recording."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import time

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .counters import COUNTERS, Counter
from .drain import Drain, Library
from .kernel_names import KernelNames
from .native import Symbols
from .program import compile_program, import_bcc, load_functions
from .protocol import CollectorProblem
from .uprobes import Uprobes


if TYPE_CHECKING:
    from .calls import SharedCalls

_TAIL_CALLS = (b"pystack_walk", b"pystack_identify", b"pystack_name")  # enum tail_call
_PROGRAMS = (b"pystack_sample", *_TAIL_CALLS)

_COUNTERS_STRUCT = struct.Struct(f"<{COUNTERS}Q")

_STATS_EVERY_NS = 1_000_000_000
_CPUCLOCK_SCHED = 2

# struct pst_layout and struct pst_config, in the order of bpf/pystack_time.h
_LAYOUT = (
    "code_type",
    "thread_state_tls",
    "cframe",
    "current_frame",
    "thread_id",
    "frame_code",
    "frame_previous",
    "frame_instruction",
    "frame_owner",
    "frame_entry",
    "owner_cstack",
    "code_first_line",
    "code_filename",
    "code_qualname",
    "code_linetable",
    "code_version",
    "code_start",
    "ascii_data",
    "compact_data",
    "bytes_data",
)
_LAYOUT_STRUCT = struct.Struct("<Q19I4x")
_CONFIG_STRUCT = struct.Struct("<QQII II 6I II II Q 6I 88s")


class Sampler:
    """The sampling program of one client, with maps and ring buffer of its own.

    Parameters
    ----------
    bpf_dir
        Where ``pystack_time.bpf.c`` and the stub kernel headers are.
    library
        Path of ``libpystack_time.so``.

    Raises
    ------
    CollectorProblem
        When bcc is missing, BPF is not permitted, or the program can't be compiled.
    """

    def __init__(self, bpf_dir: str, library: str) -> None:
        self._library = Library(library)
        self._kernel = self._library.kernel_layout()
        # Only the collector's own environment may choose what root compiles.
        os.environ.setdefault("BCC_KERNEL_SOURCE", bpf_dir)
        bcc, versions = import_bcc()
        self.versions = versions
        self._bcc = bcc
        self._bpf = compile_program(bcc, Path(bpf_dir))
        try:
            functions = load_functions(self._bpf, _PROGRAMS, bcc.BPF.PERF_EVENT)
            programs = self._bpf[b"programs"]
            for index, name in enumerate(_TAIL_CALLS):
                programs[ctypes.c_int(index)] = ctypes.c_int(functions[name].fd)
        except BaseException:
            self._bpf.cleanup()
            raise
        self._sample = functions[b"pystack_sample"]
        self._uprobes = Uprobes(bcc, self._bpf)
        self._kernel_names = KernelNames(bcc.BPF.ksym)
        self._cpus = max(bcc.utils.get_possible_cpus()) + 1
        self._epoch = self._recordings = 0
        self._recording: _Recording | None = None

    @property
    def error(self) -> str | None:
        """``"spool-full"`` once the file took no more, else None."""
        recording = self._current()
        return "spool-full" if recording.drain.error()[0] else None

    def start(self, fd: int, config: dict[str, Any]) -> dict[str, Any]:
        """Begin to record.

        Parameters
        ----------
        fd
            Where the recording is appended; it stays the caller's, until after `stop`.
        config
            ``pid``, ``tgid`` and ``pidns`` (st_dev, st_ino) of the target, ``hz``, ``layout`` or
            None, ``rights`` (``ids``, ``permitted``) or None, ``maps`` (of the target, open; the
            caller's as `fd` is), ``kernel_stacks``, ``uid``, ``gid``; ``sample``, whether there
            is to be a timer; ``whole_program``, whether nothing of the target's first moments may
            be missed; ``calls``, the `SharedCalls` of the target's probe (the caller's as
            `fd` is) or None, and then its ``site``, which is needed until this returns.
        """
        self._clear()
        self._recordings = (self._recordings + 1) % (1 << 32)
        calls: SharedCalls | None = config["calls"]
        if calls:
            self._uprobes.attach(config["site"], config["pid"])
        if config["sample"] and config["kernel_stacks"]:
            self._kernel_names.begin()
            if config["whole_program"]:
                # Not while the program runs: on a machine with few CPUs they would be its own.
                self._kernel_names.wait()
        drain = Drain(
            self._library,
            self._bpf[b"ring"].map_fd,
            fd,
            (int(config["uid"]), int(config["gid"])),
            calls.fd if calls else -1,
        )
        try:
            symbols = Symbols(drain, config["maps"], self._kernel_names)
            self._recording = recording = _Recording(drain, symbols, config)
            if calls:
                drain.append_clock(calls.clock)
            self._configure()
            recording.start_ns = time.monotonic_ns()
            recording.look_at_cpu_time()
            if config["sample"]:
                self._attach(config["hz"])
        except BaseException:
            if self._recording:
                self._detach()
            self._recording = None
            drain.close()
            raise
        return {"start_ns": recording.start_ns, "versions": self.versions}

    def set_layout(self, layout: dict[str, int] | None) -> None:
        """Walk Python frames from now on, or (None) no more."""
        recording = self._current()
        recording.config["layout"] = layout
        recording.symbols.refresh()
        self._configure()

    def set_access(self, rights: dict[str, Any] | None, maps: int) -> None:
        """Expect the rights of another program that the target executes, and its memory map.

        The former program's is not looked at any more, and may be closed.
        """
        recording = self._current()
        recording.drain.flush()
        recording.symbols.follow(maps, recording.drain.addresses())
        recording.config["rights"] = rights
        self._configure()

    def tick(self) -> None:
        """Give names to new native stacks, and note the counters about once a second."""
        recording = self._current()
        recording.symbols.tell(recording.drain.addresses())
        recording.look_at_cpu_time()
        if recording.config["calls"]:
            recording.drain.not_copied(self._kernel_counters()[Counter.CALLS_LOST])
        now = time.monotonic_ns()
        if now - recording.stats_ns >= _STATS_EVERY_NS:
            self._append_stats(now)

    def flush(self) -> None:
        """Return once everything that the kernel has given so far is in the file."""
        recording = self._current()
        recording.drain.flush()
        recording.symbols.tell(recording.drain.addresses(), last=True)
        recording.symbols.tell_kernel()
        self._append_stats(time.monotonic_ns())
        recording.drain.flush()

    def append_meta(self, meta: dict[str, Any]) -> None:
        """Append a ``PST_META`` record to the file."""
        self._current().drain.append_meta(meta)

    def stop(self, meta: dict[str, Any] | None = None) -> dict[str, Any]:
        """End the recording and return its facts; `meta` is noted at its end with them."""
        recording = self._current()
        self._detach()
        self._append_calls()
        self.flush()
        counters = self._counters()
        error, lost = recording.drain.error()
        facts = {
            "start_ns": recording.start_ns,
            "end_ns": recording.end_ns,
            "cpu_ns": recording.cpu_ns,
            "ticks": counters[Counter.TICKS],
            "hits": counters[Counter.HITS],
            "lost_by_cause": {
                "ring-buffer-full": counters[Counter.RING_FULL],
                "disk-full": counters[Counter.DISK_FULL],
                "rights-changed": counters[Counter.DENIED],
                "calls-not-copied": counters[Counter.CALLS_LOST] - lost.batches,
                "calls-disk-full": lost.batches,
            },
            "error": "spool-full" if error else None,
            "error_text": os.strerror(error) if error else None,
        }
        recording.drain.append_meta({"role": "collector", "event": "end", **facts, **(meta or {})})
        recording.drain.close()
        self._recording = None
        return facts

    def close(self) -> None:
        """Let go of the program, its maps and its events."""
        if self._recording:
            self.stop()
        self._uprobes.close()
        self._bpf.cleanup()

    def _current(self) -> _Recording:
        if self._recording is None:
            raise CollectorProblem("internal", "nothing is being recorded: start a recording.")
        return self._recording

    def _detach(self) -> None:
        """Stop the timers, and take no more from the probe; what there is is still written."""
        recording = self._current()
        self._bpf[b"config"].clear()
        for event in recording.events.values():
            self._bcc.lib.bpf_close_perf_event_fd(event)
        recording.events.clear()
        recording.end_ns = time.monotonic_ns()
        recording.look_at_cpu_time()

    def _append_calls(self) -> None:
        """Append what the probe has stored and did not send, behind all that it has sent."""
        recording = self._current()
        calls: SharedCalls | None = recording.config["calls"]
        if calls:
            recording.drain.flush()
            for record in calls.records(recording.config["tgid"]):
                recording.drain.append(record)
            recording.drain.append_clock(calls.clock)

    def _attach(self, hz: int) -> None:
        """Set a timer on each thread of the target, which threads made later inherit.

        Not on each CPU: then one client's rate would be a burden for all others.
        """
        recording = self._current()
        folder = Path(f"/proc/{recording.config['pid']}/task")
        late = 0
        while new := self._threads(folder) - recording.events.keys():
            late += len(new) if recording.events else 0
            for tid in new:
                self._attach_thread(tid, hz)
        if late:
            recording.drain.append_meta(
                {
                    "role": "collector",
                    "event": "note",
                    "text": f"{late} threads began while the probes were being attached: they may "
                    "be sampled twice",
                }
            )

    def _threads(self, folder: Path) -> set[int]:
        try:
            return {int(thread.name) for thread in folder.iterdir()} - self._current().ended
        except (FileNotFoundError, ProcessLookupError):
            return set()

    def _attach_thread(self, tid: int, hz: int) -> None:
        event = self._bcc.lib.bpf_attach_perf_event(
            self._sample.fd,
            self._bcc.PerfType.SOFTWARE,
            self._bcc.PerfSWConfig.CPU_CLOCK,
            0,
            hz,
            tid,
            -1,
            -1,
        )
        recording = self._current()
        if event >= 0:
            recording.events[tid] = event
            return
        error = ctypes.get_errno()
        if error == errno.ESRCH:
            recording.ended.add(tid)
        elif error == errno.EMFILE:
            raise CollectorProblem(
                "busy",
                f"the process has more threads than the collector may have files open "
                f"({len(recording.events)}): raise `ulimit -n`.",
            )
        else:
            raise CollectorProblem(
                "bpf-not-permitted",
                f"the kernel refused the CPU-clock event ({os.strerror(error)}): give the "
                "collector CAP_PERFMON and CAP_BPF, or run it as root.",
            )

    def _configure(self) -> None:
        config = self._current().config
        layout, rights = config["layout"], config["rights"]
        device, inode = config["pidns"]
        self._epoch = (self._epoch + 1) % (1 << 32)
        packed = _CONFIG_STRUCT.pack(
            # The kernel's own encoding of a device number, not stat()'s.
            os.major(device) << 20 | os.minor(device),
            inode,
            config["tgid"],
            layout is not None,
            bool(config["kernel_stacks"]),
            rights is not None,
            *(rights["ids"] if rights else (0,) * 6),
            self._cpus,
            self._epoch,
            self._recordings,
            0,
            rights["permitted"] if rights else 0,
            *self._kernel,
            _LAYOUT_STRUCT.pack(*(layout[name] for name in _LAYOUT)) if layout else b"",
        )
        table = self._bpf[b"config"]
        # Not in one go: without a tgid nobody is sampled by half of the new one.
        table.clear()
        table[ctypes.c_int(0)] = table.Leaf.from_buffer_copy(packed)

    def _clear(self) -> None:
        """Forget what an earlier recording knew: its ids stand in another file."""
        for name in (b"codes", b"stacks"):
            # clear() searches the map again for each key; this takes them in batches.
            for _ in self._bpf[name].items_lookup_and_delete_batch():
                pass
        self._bpf[b"counts"].clear()

    def _counters(self) -> list[int]:
        counters = self._kernel_counters()
        _, lost = self._current().drain.error()
        counters[Counter.DISK_FULL] = lost.samples
        counters[Counter.CALLS_LOST] += lost.batches + lost.refused
        return counters

    def _kernel_counters(self) -> list[int]:
        values = self._bpf[b"counts"][ctypes.c_int(0)]
        return [
            sum(each)
            for each in zip(
                *(_COUNTERS_STRUCT.unpack(bytes(value)) for value in values), strict=True
            )
        ]

    def _append_stats(self, now: int) -> None:
        recording = self._current()
        recording.stats_ns = now
        recording.drain.append_stats(now, self._counters())


class _Recording:
    """What belongs to the recording that is going on."""

    def __init__(self, drain: Drain, symbols: Symbols, config: dict[str, Any]) -> None:
        self.drain = drain
        self.symbols = symbols
        self.config = dict(config)
        self.events: dict[int, int] = {}  # descriptor of each thread's
        self.ended: set[int] = set()  # threads that were gone before they had one
        self.start_ns = self.end_ns = 0
        self.stats_ns = time.monotonic_ns()
        self.cpu_ns = 0
        self._cpu_begun: int | None = None

    def look_at_cpu_time(self) -> None:
        """Note the CPU time that the target has used since the beginning.

        Samples per CPU second is the rate reached; the timer does not tick on an idle CPU.
        """
        # The clock id of another process: MAKE_PROCESS_CPUCLOCK in include/linux/posix-timers.h.
        clock = (~self.config["pid"] << 3) | _CPUCLOCK_SCHED
        with contextlib.suppress(OSError):  # it exited: what was seen last counts
            now = time.clock_gettime_ns(clock)
            if self._cpu_begun is None:
                self._cpu_begun = now
            self.cpu_ns = now - self._cpu_begun
