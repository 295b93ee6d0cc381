"""One recording of one process, from the request to the last byte of its file."""

from __future__ import annotations

import contextlib
import os
import resource
import time

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .access import Access, Rights, check_access
from .calls import SharedCalls
from .descriptor import check_descriptor
from .notes import Notes
from .process import Process, find_pid, gone
from .protocol import CollectorProblem
from .site import Site, find_site
from .target import find_interpreter


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .loader import Sampler
    from .peer import Peer
    from .target import Interpreter


MAX_HZ = 20_000  # fairness: one client's timer must leave the machine to the others
MAX_FILE_SIZE = 8 << 30

_TICK = 0.1
_ATTEMPTS = 50
_MAX_MESSAGE = 1000  # with all notes it fits into one reply
_LOOKING_TICK = 0.01  # a program that was just started has its interpreter within milliseconds
_LOOKING_CLOSELY = 5.0
_DEFAULTS = {
    "pid": None,
    "hz": None,
    "wait_python": False,
    "kernel_stacks": True,
    "sample": True,
    "calls": None,
}
_FLAGS = ("wait_python", "kernel_stacks", "sample")
_NOT_YET = ("not-ready", "not-python")
_FULL = (
    "the recording's file can't grow any more: free some space, set TMPDIR to a bigger disk, or "
    "raise `ulimit -f`."
)


@dataclass(frozen=True)
class Options:
    """What a client asks for; checked one by one, for it may be anything.

    Attributes
    ----------
    pid
        As the client's PID namespace knows it; None: the client itself.
    hz
        Samples per second of a thread's CPU time.
    wait_python
        Whether the interpreter may come later: the program has just been started.
    kernel_stacks
        Whether kernel frames are wanted, if they are allowed.
    sample
        Whether samples are wanted.
    site
        Where in the client's own memory the calls' probe has its site; None: no calls.
    """

    pid: int | None
    hz: int
    wait_python: bool
    kernel_stacks: bool
    sample: bool = True
    site: int | None = None

    @classmethod
    def parse(cls, body: dict[str, Any]) -> Options:
        """Check the body of a START message."""
        fields = {**_DEFAULTS, **body}
        pid, hz, calls = fields["pid"], fields["hz"], fields.pop("calls")
        if (
            {*fields, "calls"} != _DEFAULTS.keys()
            or not (pid is None or _is_int(pid))
            or not all(isinstance(fields[name], bool) for name in _FLAGS)
            or not (calls is None or _is_site(calls))
        ):
            raise CollectorProblem(
                "protocol", "malformed START message: connect with pystack_nb's own client."
            )
        limit = min(MAX_HZ, int(_sysctl("perf_event_max_sample_rate")))
        if not _is_int(hz) or not 1 <= hz <= limit:
            raise CollectorProblem(
                "bad-rate",
                f"{hz!r} is no sampling rate: choose a whole number from 1 to {limit} Hz.",
            )
        return cls(**fields, site=calls["site"] if calls else None)


class Trace:
    """A process being recorded.

    Parameters
    ----------
    prepare
        Gives the sampler; called when everything else has been found right, since it may take
        a second.
    peer
        Who asks.
    options
        What for.
    fd
        The recording's file, closed with the recording.
    calls_fd
        The memory of the calls' probe, likewise; None: no calls.

    Attributes
    ----------
    target : Process
        Its pidfd tells when it ends.
    result : dict or None
        What to tell the client, once the recording has ended, for whatever reason.
    """

    def __init__(
        self,
        prepare: Callable[[], Sampler],
        peer: Peer,
        options: Options,
        fd: int,
        calls_fd: int | None = None,
    ) -> None:
        self.result: dict[str, Any] | None = None
        self._prepare = prepare
        self._peer = peer
        self._options = options
        self._fd = fd
        self._calls_fd = calls_fd
        self._notes = Notes()
        self._maps = -1
        self._program: tuple[object, ...] = ()
        self._running: Sampler | None = None
        self._at_gate = options.wait_python
        self._looking = options.wait_python
        self._looking_since = time.monotonic()
        client = peer.process
        pid = client.pid if options.pid is None else find_pid(options.pid, client)
        self.target = Process(pid, os.dup(client.pidfd) if pid == client.pid else None)

    def start(self) -> dict[str, Any]:
        """Check everything, begin, and return what the client should know.

        Raises
        ------
        CollectorProblem
            When something does not hold; then nothing was begun.
        """
        check_descriptor(self._fd, None if self._peer.privileged else self._peer.uid)
        calls = self._shared_calls()
        rights, self._maps = self._check_target()
        interpreter = self._find_interpreter() if self._options.sample else None
        kernel_stacks = self._may_see_kernel()
        self._limit_file_size()
        namespace = self.target.namespace("pid")
        tgid = self.target.status().pids[-1]
        config = {
            "pid": self.target.pid,
            "tgid": tgid,
            "pidns": namespace,
            "hz": self._options.hz,
            "layout": interpreter.layout if interpreter else None,
            "rights": _as_dict(rights),
            "maps": self._maps,
            "kernel_stacks": kernel_stacks,
            "uid": self._peer.uid,
            "gid": self._peer.gid,
            "sample": self._options.sample,
            "whole_program": self._options.wait_python,
            "calls": calls,
        }
        with self._site() as site:
            sampler = self._prepare()
            if not self.target.alive():
                raise gone(self.target.pid)
            begun = sampler.start(self._fd, {**config, "site": site})
        begun |= {
            "target_pid": tgid,
            "target_python": _version(interpreter),
            "kernel_stacks": kernel_stacks,
            "notes": self._notes.sentences(),
        }
        try:
            sampler.append_meta({"role": "collector", "event": "start", **begun})
        except BaseException:
            sampler.stop()  # before the file is closed that it writes to
            raise
        self._running = sampler
        return begun

    @property
    def _sampler(self) -> Sampler:
        if self._running is None:
            raise CollectorProblem("internal", "this recording has not begun: start it.")
        return self._running

    @property
    def period(self) -> float:
        """Seconds until the next `tick`."""
        closely = time.monotonic() - self._looking_since < _LOOKING_CLOSELY
        return _LOOKING_TICK if self._looking and closely else _TICK

    def tick(self) -> None:
        """Do what is due from time to time; may end the recording."""
        try:
            self._watch_program()
        except CollectorProblem as problem:
            if not self.target.alive():
                return  # its pidfd tells in a moment
            # A process on its way out, or whose first thread has ended, shows no program or no
            # mappings any more; until its pidfd tells, it is looked at again at the next tick.
            if problem.code not in {"not-python", "no-such-process"}:
                self.finish(problem.code, problem.message)
                return
        self._sampler.tick()
        self._check_spool()

    def flush(self) -> dict[str, Any]:
        """Bring everything recorded so far into the file."""
        if self.result is None:
            self._sampler.flush()
            self._check_spool()
        return {"recording": self.result is None, "result": self.result}

    def finish(self, reason: str, message: str | None = None) -> dict[str, Any]:
        """End the recording, unless it has ended already, and return its facts.

        Parameters
        ----------
        reason
            ``"stopped"``, ``"client-gone"``, or the code of the problem that ended it.
        message
            What to tell the user about the problem.
        """
        if self.result is None:
            message = message and message[:_MAX_MESSAGE]
            notes = self._notes.sentences()
            # Set first: should the sampler fail, nobody ends it twice.
            self.result = {"reason": reason, "message": message, "notes": notes}
            try:
                self.result |= self._sampler.stop(self.result)
            finally:
                self.close()
            if self.result["error"] is not None:
                # Whatever ended it; the file may have filled up since the last tick only.
                self.result |= {"reason": self.result["error"], "message": _FULL}
        return self.result

    def finish_exited(self) -> None:
        """End the recording because the target has ended."""
        self.finish(
            "target-exited",
            f"process {self.target.pid} ended while it was recorded: take what it did up to then "
            "from the recording.",
        )

    def close(self) -> None:
        """Let go of the files and of the target, however far `start` came."""
        with contextlib.ExitStack() as closing:
            closing.callback(os.close, self._fd)
            if self._calls_fd is not None:
                closing.callback(os.close, self._calls_fd)
            if self._maps >= 0:
                closing.callback(os.close, self._maps)
            closing.callback(self.target.close)

    def _shared_calls(self) -> SharedCalls | None:
        if self._calls_fd is None:
            return None
        if self.target.pid != self._peer.process.pid:
            raise CollectorProblem(
                "calls-of-another",
                "every call can be recorded in the process itself only: sample another process, "
                "or start pystack_nb inside of it.",
            )
        return SharedCalls(self._calls_fd, self._peer.uid)

    @contextlib.contextmanager
    def _site(self) -> Iterator[Site | None]:
        if self._options.site is None:
            yield None
            return
        site = find_site(self.target.pid, self._options.site)
        try:
            yield site
        finally:
            os.close(site.fd)

    def _check_target(self) -> Access:
        for _ in range(_ATTEMPTS):
            self._program = self.target.program()
            access = check_access(self._peer, self.target)
            if self.target.program() == self._program:
                return access
            os.close(access.maps)  # of which of the two programs, nobody knows
        raise CollectorProblem(
            "access-denied",
            f"process {self.target.pid} executes one program after the other: record it later.",
        )

    def _watch_program(self) -> None:
        program = self.target.program()
        if program != self._program:
            rights, maps = self._check_target()
            self._sampler.set_layout(None)
            self._sampler.set_access(_as_dict(rights), maps)
            os.close(self._maps)
            self._maps = maps
            # A program that was just started is new anyway, until an interpreter is found.
            if not (self._at_gate and self._looking):
                self._append_note("the target executed another program")
            self._at_gate = False
            self._looking = True
            self._looking_since = time.monotonic()
        if self._looking and (interpreter := self._find_interpreter()):
            self._sampler.set_layout(interpreter.layout)
            self._sampler.append_meta(
                {"role": "collector", "event": "python", "target_python": _version(interpreter)}
            )

    def _find_interpreter(self) -> Interpreter | None:
        """Look for the interpreter; None: not there yet, and it may still come."""
        try:
            interpreter = find_interpreter(self.target.pid)
        except CollectorProblem as problem:
            if self._looking and problem.code in _NOT_YET:
                return None
            if self._looking and problem.code == "unsupported-python":
                self._looking = False
                self._notes.add(problem.message)
                return None
            if problem.code == "not-ready":
                raise CollectorProblem(
                    "not-python",
                    f"process {self.target.pid} has not started its interpreter yet: try again.",
                ) from None
            raise
        self._looking = False
        return interpreter

    def _append_note(self, text: str) -> None:
        if self._notes.add(text):  # else the recording would grow with each
            self._sampler.append_meta({"role": "collector", "event": "note", "text": text})

    def _may_see_kernel(self) -> bool:
        if not self._options.kernel_stacks:
            return False
        if self._peer.privileged:
            return True
        if int(_sysctl("perf_event_paranoid")) <= 1 and int(_sysctl("kptr_restrict")) == 0:
            return True
        self._notes.add(
            "no kernel frames: kernel.perf_event_paranoid is above 1 or kernel.kptr_restrict is "
            "not 0"
        )
        return False

    def _limit_file_size(self) -> None:
        # The client's own limit counts as if the client wrote; SIGXFSZ is ignored in Python,
        # so that going beyond is an error of write().
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        theirs = self._peer.process.max_file_size()
        limits = [n for n in (theirs, hard, MAX_FILE_SIZE) if n != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_FSIZE, (min(limits), hard))

    def _check_spool(self) -> None:
        if self._sampler.error is not None:
            self.finish(self._sampler.error, _FULL)


def _is_site(calls: object) -> bool:
    return isinstance(calls, dict) and calls.keys() == {"site"} and _is_int(calls["site"])


def _as_dict(rights: Rights | None) -> dict[str, Any] | None:
    return {"ids": rights.ids, "permitted": rights.permitted} if rights else None


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _sysctl(name: str) -> str:
    return Path(f"/proc/sys/kernel/{name}").read_text(encoding="ascii")


def _version(interpreter: Interpreter | None) -> str | None:
    return ".".join(map(str, interpreter.version)) if interpreter else None
