"""Where a recording lies while it grows: a file that survives the process it is about."""

from __future__ import annotations

import errno
import itertools
import json
import os
import stat
import struct
import tempfile

from pathlib import Path
from typing import Any

from pystack_nb.errors import SpoolError
from pystack_nb.own_file import OwnFile


SUFFIX = ".pst"
CALLS_SUFFIX = ".calls"
MARKS_SUFFIX = ".marks"

# As in `pystack_nb.wire`, which a test compares. That needs NumPy, and whoever sets
# OMP_NUM_THREADS in a recorded cell must come before it.
_FILE_HEADER = struct.Struct("<8sII")
_FILE_MAGIC = b"PYSTACK\n"
_FORMAT = 1
_BLOCK_HEADER = struct.Struct("<IIQ")
_BLOCK_MAGIC = 0x42545350
_RECORD_HEADER = struct.Struct("<IHH")
_META = 7
_SIZE = struct.Struct("<I")
_ALIGNMENT = 8
_numbers = itertools.count()


class Spool:
    """A file of this process alone, for one recording.

    Attributes
    ----------
    path : pathlib.Path
        ``PID-STARTTIME-N.pst`` in `spool_folder`.
    fd : int
        For the collector to append to.
    """

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._file = OwnFile(fd)

    @property
    def fd(self) -> int:
        """For the collector to append to; -1 once it is closed."""
        return self._file.fd

    @classmethod
    def create(cls, meta: dict[str, Any]) -> Spool:
        """Make a file that begins with the header and with what the client knows.

        Parameters
        ----------
        meta
            JSON-able, for the first ``PST_META`` record; ``role`` is added.

        Raises
        ------
        SpoolError
            When the folder or the file can't be made or written.
        """
        folder = spool_folder()
        pid = os.getpid()
        path = folder / f"{pid}-{start_time(pid)}-{next(_numbers)}{SUFFIX}"
        data = _file_header() + meta_block({"role": "client", **meta})
        try:
            fd = os.open(
                path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise unusable(folder, error) from None
        spool = cls(path, fd)
        try:
            written = os.write(fd, data)
        except OSError as error:
            spool.remove()
            raise unusable(folder, error) from None
        if written < len(data):
            spool.remove()
            raise unusable(folder, "the disk is full")
        return spool

    def append(self, meta: dict[str, Any]) -> None:
        """Append a ``PST_META`` record.

        Raises
        ------
        SpoolError
            When it can't be written.
        """
        data = meta_block(meta)
        try:
            self._file.reopen(self.path, os.O_RDWR | os.O_APPEND)
            written = os.write(self.fd, data)
        except OSError as error:
            raise unusable(self.path.parent, error) from None
        if written < len(data):
            raise unusable(self.path.parent, "the disk is full")

    def read(self) -> bytes | bytearray:
        """Return everything written so far, with the process's own events."""
        return read(self.path)

    def close(self) -> None:
        """Close the descriptor and keep the file; closing twice does nothing."""
        self._file.close()

    def remove(self) -> None:
        """Close the descriptor and remove the file, and what stands beside it."""
        self.close()
        remove(self.path)

    @property
    def calls_path(self) -> Path:
        """Where calls that are not in the file yet are kept, when no collector has them."""
        return self.path.with_suffix(CALLS_SUFFIX)

    @property
    def marks_path(self) -> Path:
        """Where the process keeps its own events: the collector alone appends to the file."""
        return self.path.with_suffix(MARKS_SUFFIX)


def read(path: Path) -> bytes | bytearray:
    """Read a spool file, and into it the events that stand beside it.

    Raises
    ------
    OSError
        If there is no such file.
    """
    try:
        marks = whole_blocks(path.with_suffix(MARKS_SUFFIX).read_bytes(), begin=0)
    except FileNotFoundError:
        return path.read_bytes()
    with path.open("rb") as file:
        header = file.read(_FILE_HEADER.size)
        rest = os.fstat(file.fileno()).st_size - len(header)
        data = bytearray(len(header) + len(marks) + rest)
        data[: len(header)] = header
        data[len(header) : -rest or None] = marks
        read = file.readinto(memoryview(data)[len(data) - rest :])
    return data if read == rest else data[: len(data) - rest + read]


def remove(path: Path) -> None:
    """Remove a spool file, and what stands beside it."""
    for suffix in (path.suffix, CALLS_SUFFIX, MARKS_SUFFIX):
        path.with_suffix(suffix).unlink(missing_ok=True)


def block(*records: bytes) -> bytes:
    """Make a block of records, whose headers stand in them."""
    padded = [_padded(record) for record in records]
    sizes = b"".join(_SIZE.pack(len(record)) for record in padded)
    data = b"".join(padded)
    return _BLOCK_HEADER.pack(_BLOCK_MAGIC, len(padded), len(data)) + _padded(sizes) + data


def meta_block(meta: dict[str, Any]) -> bytes:
    """Make a block of one ``PST_META`` record."""
    text = json.dumps(meta).encode()
    return block(_RECORD_HEADER.pack(_RECORD_HEADER.size + len(text), _META, 0) + text)


def whole_blocks(data: bytes | bytearray, begin: int = _FILE_HEADER.size) -> bytes | bytearray:
    """Cut off what follows the last whole block: its writer was killed while it wrote.

    Parameters
    ----------
    data
        A file, or its beginning.
    begin
        Where its first block stands.
    """
    end = begin
    while end + _BLOCK_HEADER.size <= len(data):
        _, count, size = _BLOCK_HEADER.unpack_from(data, end)
        following = (
            end + _BLOCK_HEADER.size + -(-count * _SIZE.size // _ALIGNMENT) * _ALIGNMENT + size
        )
        if following > len(data):
            break
        end = following
    return data[:end]


def spool_folder() -> Path:
    """Return this user's folder for spool files, made if missing.

    In ``XDG_RUNTIME_DIR`` if that is this user's, else in the temporary folder; under another name
    where another user has taken the one that it should have.

    Raises
    ------
    SpoolError
        When it can't be made, or is not this user's alone.
    """
    user = os.geteuid()
    folder = _usual_folder(user)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        if status.st_uid != user:
            others = _other_folders(folder, user)
            folder = (
                others[0]
                if others
                else Path(tempfile.mkdtemp("", f"{folder.name}-", folder.parent))
            )
            status = folder.lstat()
    except OSError as error:
        raise unusable(folder, error) from None
    if not _is_private(status, user):
        raise unusable(folder, "it is not this user's alone")
    return folder


def leftovers() -> list[Path]:
    """Return the spool files of this user's processes that have ended, oldest first."""
    folder = spool_folder()
    user = os.geteuid()
    folders = {folder, *_other_folders(_usual_folder(user), user)}
    found = [path for each in folders for path in each.glob(f"*{SUFFIX}") if not _is_in_use(path)]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def _usual_folder(user: int) -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and _belongs_to(Path(runtime), user):
        return Path(runtime) / "pystack_nb"
    return Path(tempfile.gettempdir()) / f"pystack_nb-{user}"


def _other_folders(usual: Path, user: int) -> list[Path]:
    """Return what this user made when somebody had taken the usual folder's name."""
    found = usual.parent.glob(f"{usual.name}-*")
    return sorted(folder for folder in found if _is_private(folder.lstat(), user))


def _is_private(status: os.stat_result, user: int) -> bool:
    return stat.S_ISDIR(status.st_mode) and status.st_uid == user and not status.st_mode & 0o077


def _is_in_use(path: Path) -> bool:
    pid, _, rest = path.stem.partition("-")
    began = rest.partition("-")[0]
    return pid.isdecimal() and start_time(int(pid)) == began


def start_time(pid: int) -> str | None:
    """Return what tells a process from a later one of the same pid; None when it has ended."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = line.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _belongs_to(folder: Path, user: int) -> bool:
    try:
        return folder.stat().st_uid == user
    except OSError:
        return False


def _file_header() -> bytes:
    return _FILE_HEADER.pack(_FILE_MAGIC, _FORMAT, _FILE_HEADER.size)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)


def unusable(place: object, reason: object) -> SpoolError:
    """Make the error of a recording that finds no room, with the way on."""
    way = "make room there, or set XDG_RUNTIME_DIR or TMPDIR to a folder of your own."
    if isinstance(reason, OSError) and reason.errno == errno.EFBIG:
        way = "raise the limit on the size of files, `ulimit -f`."
    return SpoolError(f"the recording can't be written to {place} ({reason}): {way}")
