"""The BPF source through BCC: import, compile, load, and say what went wrong."""

from __future__ import annotations

import contextlib
import os
import threading

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .protocol import CollectorProblem


if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def import_bcc() -> tuple[Any, dict[str, str]]:
    """Return the module and the versions of it and of its C++ library."""
    try:
        import bcc  # noqa: PLC0415 - the only import that may be missing
        import bcc.version  # noqa: PLC0415
    except ImportError as error:
        raise CollectorProblem(
            "bcc-missing",
            f"BCC's Python package cannot be imported by the system's Python ({error}): "
            "install it with `apt-get install python3-bpfcc`.",
        ) from None
    library = Path(bcc.libbcc.lib._name)  # noqa: SLF001 - ctypes has no other way to ask
    return bcc, {"bcc": bcc.version.__version__, "libbcc": _library_version(library)}


def _library_version(name: Path) -> str:
    """Version in the name of the shared object that is mapped, as ``libbcc.so.0.26.0``."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "/libbcc.so" in line:
            return Path(line.split()[-1]).name.removeprefix("libbcc.so.")
    return name.name


def compile_program(bcc: Any, bpf_dir: Path) -> Any:
    """Compile the BPF source, without a trace of kernel headers."""
    source = bpf_dir / "pystack_time.bpf.c"
    with _standard_error() as printed:
        try:
            return bcc.BPF(text=source.read_bytes(), cflags=[f"-I{bpf_dir}", "-Wno-everything"])
        except Exception as error:  # noqa: BLE001 - BCC raises nothing more exact
            message = str(error)
    _check_rights(message, printed.text())  # the maps are made here
    raise CollectorProblem(
        "internal",
        f"{source} cannot be compiled: {message}\n{printed.text()}\n"
        "Report this with the output of `pystack-nb doctor`.",
    )


def load_functions(bpf: Any, names: Sequence[bytes], kind: int) -> dict[bytes, Any]:
    """Load programs of this kind, through the verifier; what is loaded already is given.

    The verifier takes its time, on one CPU for each program: they go there side by side.
    """
    functions: dict[bytes, Any] = {}
    errors: list[str] = []

    def load(name: bytes) -> None:
        try:
            functions[name] = bpf.load_func(name, kind)
        except Exception as error:  # noqa: BLE001 - BCC raises nothing more exact
            errors.append(str(error))

    with _standard_error() as printed:
        threads = []
        try:
            for name in names:
                threads.append(threading.Thread(target=load, args=(name,), daemon=True))
                threads[-1].start()
        finally:
            # Whatever was raised: what they work on must not go before they have ended.
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
    if not errors:
        return functions
    text = printed.text()
    _check_rights(errors[0], text)
    raise CollectorProblem(
        "internal",
        f"the kernel refused the BPF program: {errors[0]}\n{text[-4000:]}\n"
        "Report this with the output of `pystack-nb doctor`.",
    )


def _check_rights(message: str, text: str) -> None:
    """Tell a lack of rights from a program that is at fault."""
    both = f"{message}\n{text}".lower()
    # "Permission denied" comes with a text when it is the verifier's.
    if (
        "operation not permitted" in both
        or "super-user" in both
        or ("permission denied" in message.lower() and not text)
    ):
        raise CollectorProblem(
            "bpf-not-permitted",
            "the kernel does not permit BPF to the collector: run it as root, or with CAP_BPF, "
            "CAP_PERFMON and CAP_SYS_PTRACE; `pystack-nb doctor` says what is there.",
        )


class _Printed:
    def __init__(self, file: Any) -> None:
        self._file = file

    def text(self) -> str:
        self._file.seek(0)
        text: str = self._file.read().decode(errors="replace")
        return text.strip()


@contextlib.contextmanager
def _standard_error() -> Iterator[_Printed]:
    """Catch what BCC's C++ side prints: its Python side only says that something failed."""
    # A memory file: nothing is left behind, however this ends.
    file = os.fdopen(os.memfd_create("stderr", os.MFD_CLOEXEC), "w+b")
    kept = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield _Printed(file)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
