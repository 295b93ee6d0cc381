"""One client's connection: a loop that no client can make wait for another."""

from __future__ import annotations

import contextlib
import os
import platform
import select
import signal
import socket
import sys
import time
import traceback

from typing import TYPE_CHECKING, Any

from .protocol import VERSION, CollectorProblem, Decoder, MessageType, encode
from .trace import Options, Trace


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .loader import Sampler
    from .peer import Peer


_MESSAGES_A_SECOND = 200
_SEND_SECONDS = 5.0
_REQUEST_SECONDS = 60
_RECEIVE_SIZE = 64 * 1024
_FAILED = "the collector failed: read `journalctl -u pystack-nb-collector`, and report that."
_MAX_DESCRIPTORS = 4  # two are right; the others are received in order to be closed


class Session:
    """Serve one client until it leaves, dies or misbehaves.

    Parameters
    ----------
    connection
        The socket; the session closes it.
    peer
        Who is at its other end.
    make_sampler
        Compiles and loads the BPF program; called once, when first needed.
    """

    def __init__(
        self, connection: socket.socket, peer: Peer, make_sampler: Callable[[], Sampler]
    ) -> None:
        self._connection = connection
        self._peer = peer
        self._make_sampler = make_sampler
        self._sampler: Sampler | None = None
        self._trace: Trace | None = None
        self._decoder = Decoder()
        self._descriptors: list[int] = []
        self._allowance = _Allowance(_MESSAGES_A_SECOND)
        self._open = True

    def run(self) -> None:
        """Serve until the client leaves, dies or misbehaves, and leave nothing behind."""
        try:
            while self._open:
                self._wait()
        finally:
            self._end()

    def _wait(self) -> None:
        trace = self._trace if self._trace and self._trace.result is None else None
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        poll.register(self._peer.process.pidfd, select.POLLIN)
        # A client that records itself is watched once, as the client: two descriptors of one
        # process need not be ready at the same moment, and its end must be told one way only.
        if trace and trace.target.pid != self._peer.process.pid:
            poll.register(trace.target.pidfd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(trace.period * 1000 if trace else None)}
        if self._peer.process.pidfd in ready:
            # Whoever still holds the socket is not the one whose rights were checked.
            self._open = False
            return
        if trace:
            with _deadline(_REQUEST_SECONDS):
                if trace.target.pidfd in ready:
                    trace.finish_exited()
                else:
                    trace.tick()
        if self._connection.fileno() in ready:
            self._receive()

    def _receive(self) -> None:
        try:
            data, descriptors, flags, _ = socket.recv_fds(
                self._connection, _RECEIVE_SIZE, _MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            data, descriptors, flags = b"", [], 0
        self._descriptors += descriptors
        if not data:
            self._open = False
            return
        self._decoder.feed(data)
        truncated = bool(flags & socket.MSG_CTRUNC)
        try:
            self._check_descriptors(truncated)
            while self._open and (message := self._decoder.next()):
                self._allowance.take()
                self._answer(*message)
        except CollectorProblem as problem:
            self._send(MessageType.ERROR, {"error": problem.code, "message": problem.message})
            self._open = False

    def _check_descriptors(self, truncated: bool) -> None:
        if truncated or len(self._descriptors) > 2:
            raise _too_many_descriptors()

    def _answer(self, kind: MessageType, body: dict[str, Any]) -> None:
        if self._descriptors and kind is not MessageType.START:
            raise CollectorProblem("protocol", "a descriptor without START: pass it with START.")
        handle = {
            MessageType.HELLO: self._hello,
            MessageType.PREPARE: self._prepare,
            MessageType.START: self._start,
            MessageType.STOP: self._stop,
            MessageType.FLUSH: self._flush,
            MessageType.BYE: self._bye,
        }.get(kind)
        if handle is None:
            raise CollectorProblem("protocol", f"{kind.name} is no request: send a request.")
        try:
            with _deadline(_REQUEST_SECONDS):
                reply = handle(body)
        except CollectorProblem as problem:
            if problem.code == "protocol":
                raise
            message = problem.message
            if problem.code == "internal" and not self._peer.privileged:
                # It may quote the kernel's verifier, and with it kernel addresses.
                sys.stderr.write(f"{message}\n")
                message = _FAILED
            self._send(MessageType.ERROR, {"error": problem.code, "message": message})
        except Exception:  # noqa: BLE001 - the client is told, the log has the traceback
            traceback.print_exc()
            raise CollectorProblem("internal", _FAILED) from None
        else:
            self._send(MessageType.OK, reply)

    def _hello(self, body: dict[str, Any]) -> dict[str, Any]:
        if body != {}:
            raise CollectorProblem("protocol", "malformed HELLO message: send an empty object.")
        return {
            "protocol": VERSION,
            "versions": {"kernel": platform.release(), "collector_python": sys.version.split()[0]},
        }

    def _prepare(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"versions": self._prepared().versions}

    def _prepared(self) -> Sampler:
        if self._sampler is None:
            self._sampler = self._make_sampler()
        return self._sampler

    def _start(self, body: dict[str, Any]) -> dict[str, Any]:
        try:
            trace = self._make_trace(body)
        except BaseException:
            while self._descriptors:
                os.close(self._descriptors.pop())
            raise
        self._descriptors.clear()  # the trace's, from now on
        try:
            reply = trace.start()
        except BaseException:
            trace.close()
            raise
        self._trace = trace
        return reply

    def _make_trace(self, body: dict[str, Any]) -> Trace:
        wanted = 1 if body.get("calls") is None else 2
        if len(self._descriptors) > wanted:
            raise _too_many_descriptors()
        if len(self._descriptors) < wanted:
            raise CollectorProblem(
                "protocol",
                "START without a descriptor: pass one with it, and with calls that of their "
                "memory too.",
            )
        if self._trace:
            raise CollectorProblem("busy", "this client is recording already: stop it first.")
        return Trace(self._prepared, self._peer, Options.parse(body), *self._descriptors)

    def _stop(self, _: dict[str, Any]) -> dict[str, Any]:
        trace, self._trace = self._tracing(), None
        return trace.finish("stopped")

    def _flush(self, _: dict[str, Any]) -> dict[str, Any]:
        return self._tracing().flush()

    def _tracing(self) -> Trace:
        if self._trace is None:
            raise CollectorProblem("protocol", "nothing is being recorded: send START first.")
        return self._trace

    def _bye(self, _: dict[str, Any]) -> dict[str, Any]:
        self._open = False
        return {}

    def _send(self, kind: MessageType, body: dict[str, Any]) -> None:
        self._connection.settimeout(_SEND_SECONDS)
        try:
            self._connection.sendall(encode(kind, body))
        except OSError:
            self._open = False  # it left, or does not read
        finally:
            self._connection.settimeout(None)

    def _end(self) -> None:
        with _deadline(_REQUEST_SECONDS), contextlib.ExitStack() as stack:
            stack.callback(self._connection.close)
            for fd in self._descriptors:
                stack.callback(os.close, fd)
            if self._sampler:
                stack.callback(self._sampler.close)
            if self._trace:
                stack.callback(self._trace.finish, "client-gone")


def _too_many_descriptors() -> CollectorProblem:
    return CollectorProblem(
        "protocol",
        "too many descriptors: pass one with START, and with calls that of their memory too.",
    )


class _Allowance:
    """How many messages a client may still send; it grows with time, up to one second's."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._left = float(rate)
        self._since = time.monotonic()

    def take(self) -> None:
        now = time.monotonic()
        self._left = min(self._rate, self._left + (now - self._since) * self._rate) - 1
        self._since = now
        if self._left < 0:
            raise CollectorProblem("protocol", "too many messages a second: send fewer.")


@contextlib.contextmanager
def _deadline(seconds: int) -> Iterator[None]:
    """Let the kernel end this process if what follows takes longer.

    It serves one client alone, and what could take longer is this client's doing: a file or a
    process that never answers. Its probes end with it.
    """
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
