"""Where what the probe stores finds no room, or its files are closed by the recorded program."""

from __future__ import annotations

import subprocess
import sys

import pytest


FILL = """
def fill(folder):
    with open(Path(folder, "filler"), "wb", buffering=0) as file:
        for size in (65536, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
"""
USER_FILES = """
def take_descriptors():
    os.closerange(3, 200)
    return [open(f"user{n}", "wb", buffering=0) for n in range(30)]

def check(files):
    for file in files:
        file.write(b"user data")  # nobody has closed it
        assert os.path.getsize(file.name) == 9, file.name
"""


@pytest.fixture
def small_disk(tmp_path, needs_root):
    """Mount a file system of so many KiB; its folder."""
    folder = tmp_path / "small"
    folder.mkdir(mode=0o700)

    def mount(kibibytes):
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={kibibytes}k,mode=700", "tmpfs", folder],
            check=True,
        )
        return folder

    yield mount
    subprocess.run(["umount", "--lazy", folder], check=False)


def test_a_disk_without_room_for_the_calls_is_an_error_at_the_start(probed, small_disk):
    folder = small_disk(512)
    probed.run(
        "from pystack_nb.errors import SpoolError\n"
        f"probe = Probe(CallOptions(), Path({str(folder)!r}, 'a.calls'))\n"
        "spool = os.memfd_create('spool')\n"
        "try:\n    probe.start(spool)\n"
        "except SpoolError as error:\n    assert 'make room there' in str(error), error\n"
        "else:\n    raise SystemExit('not refused')\n"
        "probe.close()\n"
        "keep(record(lambda: call(10)))\n"
    )
    assert probed.ncalls()["leaf"] == 10


def test_a_disk_that_fills_up_leaves_new_threads_out_and_the_program_alive(probed, small_disk):
    folder = small_disk(2048)
    probed.run(
        f"{FILL}\n"
        "class InFile(Recording):\n"
        f"    path = Path({str(folder)!r}, 'a.calls')\n"
        "import record_calls\n"
        "record_calls.Probe = lambda options: Probe(options, InFile.path)\n"
        "recording = InFile()\n"
        "call(10)\n"
        f"fill({str(folder)!r})\n"
        "threads = [threading.Thread(target=call, args=(1000,)) for _ in range(3)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "call(20)\n"
        "recording.stop()\nkeep(recording.data)\n"
    )
    recording = probed.recording()
    assert probed.ncalls()["leaf"] == 30
    assert recording.info["incomplete_by_cause"]["threads-without-buffer"] == 3


def run_here(text, folder, **environment):
    """Run a program with the whole package, under the interpreter of the tests."""
    ran = subprocess.run(
        [sys.executable, "-c", text],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_a_start_without_room_leaves_no_file_behind(small_disk, tmp_path):
    folder = small_disk(512)
    run_here(
        "from pystack_nb import PyStackProfiler\nfrom pystack_nb.errors import SpoolError\n"
        "try:\n    PyStackProfiler(mode='calls', source='inprocess').start_profiling()\n"
        "except SpoolError as error:\n    assert 'make room there' in str(error), error\n"
        "else:\n    raise SystemExit('not refused')\n",
        tmp_path,
        XDG_RUNTIME_DIR=str(folder),
    )
    assert [path for path in folder.rglob("*") if path.is_file()] == []


def test_a_limit_on_the_size_of_files_is_an_error_that_names_it(probed):
    probed.run(
        "import resource\nfrom pystack_nb.errors import SpoolError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10 << 20,) * 2)\n"
        "for path in (None, Path('a.calls')):\n"
        "    try:\n        Probe(CallOptions(), path)\n"
        "    except SpoolError as error:\n        assert 'ulimit -f' in str(error), error\n"
        "    else:\n        raise SystemExit('not refused')\n"
    )


def test_a_program_that_closes_every_descriptor_loses_neither_calls_nor_its_own_files(
    probed, tmp_path
):
    run_here(
        f"import os\nfrom pystack_nb import PyStackProfiler\n{USER_FILES}\n"
        "def leaf(): pass\n"
        "profiler = PyStackProfiler(mode='calls', source='inprocess')\n"
        "profiler.start_profiling()\n"
        "files = take_descriptors()\n"
        "for _ in range(3000): leaf()\n"
        "rec = profiler.stop_profiling()\n"
        "check(files)\n"
        "found = rec.functions().set_index('function')['ncalls']\n"
        "assert found['leaf'] == 3000, found\nassert rec.info['incomplete'] == 0\n",
        tmp_path,
        XDG_RUNTIME_DIR=str(tmp_path),
    )
    probed.run(  # here the file has no name, and can't be opened anew
        f"{USER_FILES}\n"
        "recording = Recording()\n"
        "recording.spool.path.unlink()\n"
        "files = take_descriptors()\ncall(3000)\n"
        "recording.probe.stop()\n"
        "try:\n    recording.probe.close()\n"
        "except OSError:\n    pass\n"
        "else:\n    raise SystemExit('nothing said')\n"
        "check(files)\n"
    )
