"""Finding interpreters in live processes, each version that this machine has."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pystack_nb.collector.layouts import SUPPORTED
from pystack_nb.collector.memory import AddressSpace, Mapping
from pystack_nb.collector.protocol import CollectorProblem
from pystack_nb.collector.target import find_interpreter


if TYPE_CHECKING:
    from collections.abc import Iterator


TRUTH = Path(__file__).with_name("truth.py")
WAIT = "import sys; print('up', flush=True); sys.stdin.readline()"


@functools.cache
def interpreters() -> dict[tuple[int, int, int], Path]:
    """Every CPython here: the distribution's, pyenv's, and the one that runs the tests."""
    candidates = [Path(os.path.realpath(sys.executable)), *Path("/usr/bin").glob("python3.*")]
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=True)
        candidates += Path(root.stdout.strip()).glob("versions/*/bin/python3.*")
    found = {}
    for path in candidates:
        if not re.fullmatch(r"python3\.\d+", path.name):
            continue
        version = subprocess.run([path, "-V"], capture_output=True, text=True, check=True).stdout
        match = re.match(r"Python (\d+)\.(\d+)\.(\d+)", version)
        assert match
        found.setdefault((int(match[1]), int(match[2]), int(match[3])), path)
    return found


def supported() -> list[Path]:
    """Those whose frames can be walked."""
    return [path for version, path in sorted(interpreters().items()) if version[:2] in SUPPORTED]


def named(supported: bool) -> list[object]:
    return [
        pytest.param(version, path, id=".".join(map(str, version)))
        for version, path in sorted(interpreters().items())
        if (version[:2] in SUPPORTED) == supported
    ]


@contextlib.contextmanager
def running(*command: str | Path, **options: object) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    )
    try:
        assert process.stdin
        assert process.stdout
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def running_python(path: str | Path, *arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    with running(path, *arguments) as process:
        assert process.stdout.readline() == "up\n"
        yield process


def problem(pid: int) -> CollectorProblem:
    with pytest.raises(CollectorProblem) as caught:
        find_interpreter(pid)
    return caught.value


@pytest.mark.parametrize(("version", "path"), named(supported=True))
def test_a_layout_is_what_the_interpreter_knows_of_itself(
    version: tuple[int, int, int], path: Path
) -> None:
    with running_python(path, TRUTH) as process:
        found = find_interpreter(process.pid)
        print(json.dumps(found.layout), file=process.stdin, flush=True)
        notes = json.loads(process.stdout.readline())
    assert found.version == version
    assert [note for note in notes if note[1] != note[2]] == []
    assert {note[0] for note in notes} >= {"thread state", "code objects", "instructions", "UCS-2"}


@pytest.mark.parametrize(("version", "path"), named(supported=True))
def test_static_data_of_the_interpreter_is_in_memory_afterwards(
    version: tuple[int, int, int], path: Path
) -> None:
    with running_python(path, "-c", WAIT) as process:
        library = find_interpreter(process.pid).executable_path
        resident, size = resident_data(process.pid, library)
    assert size > 1 << 20, version
    assert resident == size


def resident_data(pid: int, path: str) -> tuple[int, int]:
    resident = size = 0
    counted = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        fields = line.split()
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counted = line.endswith(path) and "x" not in fields[1]
        elif counted and fields[0] == "Size:":
            size += int(fields[1]) << 10
        elif counted and fields[0] == "Rss:":
            resident += int(fields[1]) << 10
    return resident, size


@pytest.mark.parametrize(("version", "path"), named(supported=False))
def test_an_unsupported_version_is_named_beside_the_supported_ones(
    version: tuple[int, int, int], path: Path
) -> None:
    with running_python(path, "-c", WAIT) as process:
        refused = problem(process.pid)
    assert refused.code == "unsupported-python"
    assert "Python {}.{}".format(*version) in refused.message
    assert "3.11, 3.12, 3.13" in refused.message


SUBINTERPRETER = """
import sys
for name in ("_interpreters", "_xxsubinterpreters"):
    try:
        module = __import__(name)
    except ImportError:
        continue
    made = module.create()
    break
"""


@pytest.mark.parametrize(("version", "path"), named(supported=True))
def test_a_process_with_subinterpreters_and_many_threads_is_read(
    version: tuple[int, int, int], path: Path
) -> None:
    program = (
        SUBINTERPRETER
        + "import threading\ngate = threading.Event()\n"
        + "[threading.Thread(target=gate.wait, daemon=True).start() for _ in range(80)]\n"
        + WAIT
    )
    with running_python(path, "-c", program) as process:
        assert find_interpreter(process.pid).version == version


def test_a_program_whose_file_was_deleted_is_read(tmp_path: Path) -> None:
    version, path = next(item for item in interpreters().items() if item[0][:2] in SUPPORTED)
    copy = tmp_path / "python3"
    shutil.copy(path, copy)
    prefix = subprocess.run(
        [path, "-c", "import sys; print(sys.base_prefix)"],
        capture_output=True,
        text=True,
        check=True,
    )
    with running(
        copy, "-c", WAIT, env={**os.environ, "PYTHONHOME": prefix.stdout.strip()}
    ) as process:
        assert process.stdout.readline() == "up\n"
        copy.unlink()
        assert find_interpreter(process.pid).version == version


def test_a_program_that_is_not_python_is_told_apart() -> None:
    with running("/bin/cat") as process:
        wait_for_exec(process.pid, "cat")
        refused = problem(process.pid)
    assert refused.code == "not-python"
    assert "give the pid" in refused.message


def wait_for_exec(pid: int, name: str) -> None:
    """Wait until `pid` runs `name`: the kernel names a program before it has mapped its file."""
    process = Path(f"/proc/{pid}")
    while (
        process.joinpath("exe").readlink().name != name
        or f"/{name}\n" not in process.joinpath("maps").read_text()
    ):
        time.sleep(0.001)


FAKE = r"""
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
unsigned long Py_Version;
unsigned char PyCode_Type[416], _PyRuntime[0x80000];
static unsigned long interpreter[64], thread[64];
int main(int argc, char **argv)
{
	Py_Version = strtoul(argv[1], NULL, 16);
	if (!strcmp(argv[2], "free-threaded")) {
		memcpy(_PyRuntime, "xdebugpy", 8);
		_PyRuntime[16] = 1;
	} else if (!strcmp(argv[2], "pointer to nowhere")) {
		*(unsigned long *)(_PyRuntime + 0x28) = 0xdead0000;
	} else if (!strcmp(argv[2], "endless list")) {
		*(unsigned long **)(_PyRuntime + 0x28) = interpreter;
		interpreter[2] = (unsigned long)thread;
		thread[1] = (unsigned long)thread;
		thread[2] = (unsigned long)interpreter;
		thread[152 / 8] = (unsigned long)thread;
		*(unsigned long *)(_PyRuntime + 0x250) = 1;
	} else if (!strcmp(argv[2], "list of strangers")) {
		*(unsigned long **)(_PyRuntime + 0x28) = interpreter;
		interpreter[2] = (unsigned long)thread;
	}
	puts("up");
	fflush(stdout);
	getchar();
	return 0;
}
"""


@pytest.fixture(scope="session")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that has Python's symbols, and beneath them what it likes."""
    program = tmp_path_factory.mktemp("fake") / "fake"
    subprocess.run(
        ["cc", "-rdynamic", "-x", "c", "-o", program, "-"], input=FAKE, text=True, check=True
    )
    return program


def test_an_interpreter_that_is_not_set_up_yet_is_not_ready(fake: Path) -> None:
    with running_python(fake, "030c01f0", "zeros") as process:
        assert problem(process.pid).code == "not-ready"


@pytest.mark.parametrize(
    ("number", "content", "reason"),
    [
        ("030e00f0", "zeros", "CPython 3.14.0 is not supported"),
        ("030d00f0", "zeros", "does not describe its own layout"),
        ("030d00f0", "free-threaded", "free-threaded build"),
        ("030b02f0", "pointer to nowhere", "can't be read"),
        ("030b02f0", "endless list", "no thread holds its thread state"),
        ("030b02f0", "list of strangers", "does not point to its interpreter"),
    ],
)
def test_a_process_that_lies_about_its_python_is_refused(
    fake: Path, number: str, content: str, reason: str
) -> None:
    with running_python(fake, number, content) as process:
        refused = problem(process.pid)
    assert refused.code == "unsupported-python"
    assert reason in refused.message


def test_a_program_that_is_only_called_python_is_not_ready(tmp_path: Path) -> None:
    called = tmp_path / "python3.12"
    shutil.copy("/bin/cat", called)
    with running(called) as process:
        wait_for_exec(process.pid, "python3.12")
        assert problem(process.pid).code == "not-ready"


def test_a_process_that_ended_is_gone() -> None:
    with running("/bin/true") as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert problem(process.pid).code == "no-such-process"
    assert problem(process.pid).code == "no-such-process"


def test_memory_of_a_program_that_was_replaced_is_not_read_as_the_new_one() -> None:
    with running("/bin/sh", "-c", "echo up; read -r line; exec cat") as process:
        assert process.stdout.readline() == "up\n"
        with AddressSpace(process.pid) as memory:
            first = memory.mapped_files(lambda path: path.startswith("/"))[0]
            assert memory.read(first.start, 4) == b"\x7fELF"
            print(file=process.stdin, flush=True)
            wait_for_exec(process.pid, "cat")
            assert memory.read_some(first.start, 4) == b""


def out_of_range(mapping: Mapping, path: Path) -> Mapping:
    """Let a mapping be found by its path alone."""
    return mapping._replace(start=0x1000, end=0x2000, path=str(path))


def test_only_the_very_file_that_is_mapped_is_opened(tmp_path: Path) -> None:
    with running("/bin/cat") as process:
        wait_for_exec(process.pid, "cat")
        with AddressSpace(process.pid) as memory:
            mapping = memory.mapped_files(lambda path: path.endswith("/cat"))[0]
            fd = memory.open_file(out_of_range(mapping, Path(mapping.path)))
            assert fd is not None
            os.close(fd)
            assert memory.open_file(out_of_range(mapping, Path("/bin/true"))) is None
            fifo = tmp_path / "fifo"
            os.mkfifo(fifo)
            assert memory.open_file(out_of_range(mapping, fifo)) is None
            assert memory.open_file(out_of_range(mapping, Path("/dev/zero"))) is None


@pytest.mark.parametrize("address", [0, 1, 0xFFFF_FFFF_FF60_0000, 1 << 63, (1 << 64) - 1])
def test_an_address_that_no_program_has_is_unreadable(address: int) -> None:
    with running("/bin/cat") as process, AddressSpace(process.pid) as memory:
        assert memory.read_some(address, 8) == b""
