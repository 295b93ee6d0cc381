"""System calls that Python's standard library does not wrap."""

from __future__ import annotations

import ctypes
import os


CAP_SYS_PTRACE = 1 << 19

_PR_SET_PDEATHSIG = 1
_CAPABILITY_VERSION_3 = 0x20080522
_SET_IDS = {"x86_64": (119, 117), "aarch64": (149, 147)}  # setresgid and setresuid
_UNCHANGED = ctypes.c_uint(0xFFFFFFFF)

_libc = ctypes.CDLL(None, use_errno=True)


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityData(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


class _Statfs(ctypes.Structure):
    # struct statfs of 64-bit kernels is 120 bytes; only its first word is looked at.
    _fields_ = (("type", ctypes.c_long), ("rest", ctypes.c_byte * 248))


def die_with_parent(number: int) -> None:
    """Let the kernel send this signal when the parent process ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0))


def file_system_type(fd: int) -> int:
    """Return the magic number of the file system that a descriptor lies on."""
    answer = _Statfs()
    _check(_libc.fstatfs(fd, ctypes.byref(answer)))
    number: int = answer.type
    return number & 0xFFFFFFFF


def act_as(uid: int, gid: int, capabilities: int) -> None:
    """Be another user in what this thread alone does from now on, with these capabilities.

    The thread stays out of that user's reach: who may send it a signal or trace it is a matter of
    its real and saved ids too, and those stay.
    """
    set_gids, set_uids = _SET_IDS[os.uname().machine]
    # The system calls: glibc's functions are for all threads of the process.
    for number, wanted in ((set_gids, gid), (set_uids, uid)):
        _check(_libc.syscall(number, _UNCHANGED, ctypes.c_uint(wanted), _UNCHANGED))
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    data = (_CapabilityData * 2)()
    for index, word in enumerate((capabilities & 0xFFFFFFFF, capabilities >> 32)):
        data[index].effective = data[index].permitted = word
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(data)))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
