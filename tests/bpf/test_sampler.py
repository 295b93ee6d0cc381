"""What the sampler collects in the kernel, and what it says when something is missing."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

from pathlib import Path

import pytest

import pystack_nb

from pystack_nb import PyStackProfiler, errors
from pystack_nb.collector.client import connect, disconnect
from tests.bpf.test_target import supported


HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
DEEPEST = 128


def burn(seconds):
    """Use this thread's CPU."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(500))


def recorded(work, hz=999):
    """Record this process while it works."""
    with PyStackProfiler(hz=hz) as profiler:
        work()
    return profiler.recording


def python_frames(recording):
    return recording.stacks[recording.stacks["kind"] == "python"]


def collector_pid(profiler):
    """Pid of the collector that a profiler's process has started."""
    return profiler._client._collector.pid


def test_a_stack_as_deep_as_the_limit_is_whole_and_a_deeper_one_is_cut_and_counted():
    def deep(n):
        return deep(n - 1) if n else burn(0.3)

    # One stack for everything around this test, found out by recording it.
    around = python_frames(recorded(lambda: burn(0.1))).groupby("stack_id").size().max()
    whole = recorded(lambda: deep(DEEPEST - around - 2))
    assert whole.info["incomplete_by_cause"]["too-deep"] == 0
    cut = recorded(lambda: deep(DEEPEST))
    deepest = python_frames(cut).groupby("stack_id").size().max()
    assert deepest == DEEPEST
    assert cut.info["incomplete_by_cause"]["too-deep"] > 100
    assert cut.info["incomplete"] >= cut.info["incomplete_by_cause"]["too-deep"]
    # What is cut off is the outer end: the leaf is right.
    assert (cut.samples["function"] == "burn").mean() > 0.9


@pytest.fixture
def library(tmp_path):
    """A library of this test alone, with a thread that burns time in a known function."""
    path = tmp_path / "burn.so"
    options = ["-O1", "-g", "-fno-omit-frame-pointer", "-shared", "-fPIC", "-pthread"]
    source = HERE / "programs" / "burn.c"
    subprocess.run(["cc", *options, "-o", path, source], check=True)
    return path


def test_a_library_that_is_replaced_meanwhile_lends_no_wrong_names(library):
    native = ctypes.CDLL(str(library))

    def work():
        native.burn_start()
        try:
            time.sleep(0.3)
        finally:
            native.burn_stop()
        shutil.copy(library, library.with_name("new.so"))
        library.with_name("new.so").replace(library)

    recording = recorded(work)
    burning = recording.stacks[recording.stacks["filename"] == str(library)]
    assert len(burning) > 0
    assert set(burning["function"].str.partition("+")[0]) == {"burn.so"}


def test_threads_that_run_no_python_have_native_frames_alone(library):
    native = ctypes.CDLL(str(library))
    tid = native.burn_start()
    try:
        recording = recorded(lambda: time.sleep(0.5))
    finally:
        native.burn_stop()
    samples = recording.samples[recording.samples["tid"] == tid]
    assert len(samples) > 50
    assert samples["function"].isna().all()
    assert (samples["line_number"] == 0).all()
    stacks = recording.stacks[recording.stacks["stack_id"].isin(samples["stack_id"])]
    assert set(stacks["kind"]) <= {"native", "kernel"}
    burning = stacks[stacks["function"] == "native_burn"]
    assert samples["stack_id"].isin(burning["stack_id"]).mean() > 0.8
    assert set(burning["filename"]) == {str(library)}


def test_time_in_the_kernel_has_kernel_frames_by_name():
    def work():
        with Path("/dev/zero").open("rb", buffering=0) as zero:
            end = time.thread_time() + 0.4
            while time.thread_time() < end:
                zero.read(1 << 22)

    recording = recorded(work)
    kernel = recording.stacks[recording.stacks["kind"] == "kernel"]
    assert recording.samples["stack_id"].isin(kernel["stack_id"]).mean() > 0.5
    assert set(kernel["filename"]) == {"[kernel]"}
    assert kernel["function"].str.match(r"[A-Za-z_]").mean() > 0.9
    assert not kernel["function"].str.contains("0x").any()


def test_each_thread_is_sampled_with_its_own_stack():
    def one():
        burn(0.3)

    def two():
        burn(0.3)

    def work():
        threads = [threading.Thread(target=target) for target in (one, two)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [thread.native_id for thread in threads]

    tids = []
    recording = recorded(lambda: tids.extend(work()))
    frames = python_frames(recording)
    for tid, own, other in [(tids[0], "one", "two"), (tids[1], "two", "one")]:
        stacks = recording.samples.loc[recording.samples["tid"] == tid, "stack_id"]
        names = frames[frames["stack_id"].isin(stacks)]["function"]
        assert names.str.endswith(f".{own}").any()
        assert not names.str.endswith(f".{other}").any()


def test_the_clock_is_that_of_perf_counter():
    before = time.perf_counter_ns()
    recording = recorded(lambda: burn(0.1))
    after = time.perf_counter_ns()
    assert recording.samples["ts_ns"].between(before, after).all()
    assert before < recording.info["start_ns"] < recording.info["end_ns"] < after


def test_stack_traces_can_be_had_while_recording():
    profiler = PyStackProfiler(hz=999)
    assert profiler.get_stack_traces() == []
    profiler.start_profiling()
    burn(0.2)
    early = profiler.get_stack_traces()
    burn(0.2)
    later = profiler.get_stack_traces()
    recording = profiler.stop_profiling()
    assert 100 < len(early) < len(later) <= len(recording.samples)
    trace = next(trace for trace in early if trace["function"] == "burn")
    assert set(trace) == {
        *("timestamp", "pid", "tid", "function", "filename", "line_number", "stack")
    }
    assert trace["pid"] == os.getpid()
    assert trace["filename"] == __file__
    assert [frame["function"] for frame in trace["stack"] if frame["kind"] == "python"][-1] == (
        "burn"
    )
    assert profiler.get_stack_traces() == recording.to_traces()


def test_what_finds_the_ring_buffer_full_is_counted():
    def deep(n, work):
        return deep(n - 1, work) if n else work()

    profiler = PyStackProfiler(hz=9999)
    profiler.start_profiling()
    collector = collector_pid(profiler)
    try:
        os.kill(collector, signal.SIGSTOP)
        deep(DEEPEST, lambda: burn(4))
    finally:
        os.kill(collector, signal.SIGCONT)
    recording = profiler.stop_profiling()
    info = recording.info
    assert info["lost_by_cause"]["ring-buffer-full"] > 1000
    assert info["lost"] == sum(info["lost_by_cause"].values())
    assert info["samples"] == len(recording.samples)
    # Nothing is missing that is not counted.
    assert info["counters"]["hits"] == info["samples"] + info["lost"]
    # A name that found no room is sent again: what arrives is named.
    assert recorded(lambda: burn(0.1)).info["incomplete"] == 0


@pytest.fixture
def small_disk(needs_root, tmp_path, monkeypatch):
    """A file system with room for a short recording only."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], check=True)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(disk))
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_ends_the_recording_and_keeps_what_was_written(small_disk):
    profiler = PyStackProfiler(hz=4999)
    profiler.start_profiling()
    burn(1.5)
    with pytest.raises(errors.SpoolFullError, match="free some space") as raised:
        profiler.stop_profiling()
    recording = raised.value.recording
    assert recording is profiler.recording
    assert len(recording.samples) > 300
    assert (recording.samples["function"] == "burn").mean() > 0.9
    assert recording.info["lost_by_cause"]["disk-full"] > 0
    assert "free some space" in recording.info["error"]
    assert not recording.info["complete"]
    assert list(small_disk.rglob("*.pst")) == []
    profiler.start_profiling()
    profiler.stop_profiling()


def test_a_disk_that_fills_up_at_the_very_end_is_told_too(small_disk):
    # GIVEN a collector that sees the disk full only when it is to stop
    profiler = PyStackProfiler(hz=4999)
    profiler.start_profiling()
    free = os.statvfs(small_disk)
    (small_disk / "filling").write_bytes(bytes(free.f_bavail * free.f_bsize))
    # WHEN the recording is shorter than the time between two looks at the file
    burn(0.02)
    # THEN stopping is an error all the same
    with pytest.raises(errors.SpoolFullError, match="free some space"):
        profiler.stop_profiling()
    info = profiler.recording.info
    assert info["lost_by_cause"]["disk-full"] > 0
    assert info["lost_by_cause"]["rights-changed"] == 0
    assert info["lost"] == sum(info["lost_by_cause"].values())
    assert not info["complete"]


CLIENT = """
import sys, time
import pystack_nb
def burn_in_client():
    while True:
        sum(range(500))
profiler = pystack_nb.PyStackProfiler(hz=999)
profiler.start_profiling()
print("recording", flush=True)
burn_in_client()
"""


def test_the_recording_of_a_killed_process_is_recovered_with_names(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", CLIENT], stdout=subprocess.PIPE) as client:
        client.stdout.readline()
        # It is being recorded still: not to be recovered.
        assert pystack_nb.recover() == []
        time.sleep(1)
        client.kill()
        client.wait()
    ended = time.monotonic() + 30
    while not (found := pystack_nb.recover())[0].info["complete"] and time.monotonic() < ended:
        time.sleep(0.05)
    (recording,) = found
    assert len(recording.samples) > 100
    assert (recording.samples["function"] == "burn_in_client").mean() > 0.9
    assert recording.info["target_pid"] == client.pid
    assert recording.info["complete"]
    (again,) = pystack_nb.recover(keep=False)
    assert again.info["spool"] == recording.info["spool"]
    assert pystack_nb.recover() == []
    assert list(tmp_path.rglob("*.pst")) == []


def test_the_recording_of_a_killed_collector_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    profiler = PyStackProfiler(hz=999)
    profiler.start_profiling()
    burn(0.5)
    os.kill(collector_pid(profiler), signal.SIGKILL)
    with pytest.raises(errors.CollectorError, match="doctor"):
        profiler.stop_profiling()
    assert len(profiler.recording.samples) > 300
    assert not profiler.recording.info["complete"]
    assert len(recorded(lambda: burn(0.1)).samples) > 50


def test_a_target_that_ends_is_an_error_with_its_recording():
    program = "import time; end = time.time() + 1\nwhile time.time() < end: pass"
    with subprocess.Popen([sys.executable, "-c", program]) as target:
        time.sleep(0.3)
        profiler = PyStackProfiler(hz=999)
        profiler.start_profiling(target.pid)
        target.wait()
        time.sleep(0.2)
        with pytest.raises(errors.TargetExitedError) as raised:
            profiler.stop_profiling()
    assert len(raised.value.recording.samples) > 300
    assert str(target.pid) in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"hz": 0}, errors.RateError),
        ({"hz": 10**9}, errors.RateError),
        ({"hz": 99.5}, errors.RateError),
        ({"mode": "guess"}, errors.OptionError),
    ],
)
def test_a_bad_setting_is_refused_and_nothing_recorded(arguments, error):
    with pytest.raises(error, match="choose"):
        PyStackProfiler(**arguments).start_profiling()
    client = connect()
    assert not client.recording
    client.release()


def test_a_pid_that_nobody_has_is_refused():
    with pytest.raises(errors.NoSuchProcessError):
        PyStackProfiler().start_profiling(2**22 - 1)


def test_a_process_that_is_not_python_is_refused():
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            with pytest.raises(errors.NotPythonError):
                PyStackProfiler().start_profiling(process.pid)
        finally:
            process.kill()


def test_starting_twice_and_stopping_without_a_start_are_told():
    profiler = PyStackProfiler()
    with pytest.raises(errors.ProfilerStateError, match="start_profiling"):
        profiler.stop_profiling()
    profiler.start_profiling()
    with pytest.raises(errors.ProfilerStateError, match="stop_profiling"):
        profiler.start_profiling()
    profiler.stop_profiling()


def test_a_forked_child_can_neither_stop_nor_disturb_its_parents_recording():
    profiler = PyStackProfiler(hz=999)
    profiler.start_profiling()
    child = os.fork()
    if not child:
        try:
            profiler.stop_profiling()
        except errors.ProfilerStateError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    burn(0.2)
    assert len(profiler.stop_profiling().samples) > 100


def test_two_recordings_at_once_keep_apart():
    program = "while True: pass"
    with subprocess.Popen([sys.executable, "-c", program]) as target:
        try:
            time.sleep(0.3)
            other = PyStackProfiler(hz=499)
            other.start_profiling(target.pid)
            mine = recorded(lambda: burn(0.3))
            theirs = other.stop_profiling()
        finally:
            target.kill()
    assert set(mine.samples["pid"]) == {os.getpid()}
    assert set(theirs.samples["pid"]) == {target.pid}


def test_the_program_passes_the_verifier_as_a_co_re_object(needs_root, needs_bpftool):
    subprocess.run(["make", "-s", "-C", REPOSITORY / "bpf", "object"], check=True)
    bpffs = Path("/sys/fs/bpf")
    mounted = bpffs.is_mount()
    if not mounted:
        subprocess.run(["mount", "-t", "bpf", "none", bpffs], check=True)
    pins = bpffs / f"pystack_nb-test-{os.getpid()}"
    loaded = REPOSITORY / "bpf" / ".output" / "pystack_time.bpf.o"
    try:
        subprocess.run(["bpftool", "prog", "loadall", loaded, pins], check=True)
        assert {pin.name for pin in pins.iterdir()} == {
            *("pystack_sample", "pystack_walk", "pystack_identify", "pystack_name"),
            "pystack_calls",
        }
        shown = subprocess.run(
            ["bpftool", "--json", "prog", "show", "pinned", pins / "pystack_sample"],
            check=True,
            capture_output=True,
        )
        assert json.loads(shown.stdout)["type"] == "perf_event"
    finally:
        shutil.rmtree(pins, ignore_errors=True)
        if not mounted:
            subprocess.run(["umount", bpffs], check=True)


def test_nothing_is_written_where_kernel_headers_would_be():
    before = sorted(Path("/lib/modules").rglob("*"))
    disconnect()  # so that the next one compiles
    recorded(lambda: None)
    assert sorted(Path("/lib/modules").rglob("*")) == before


def test_a_warm_collector_is_kept_and_another_service_is_another_one(monkeypatch):
    warm = connect()
    warm.release()
    assert connect() is warm
    warm.release()
    monkeypatch.setenv("PYSTACK_NB_SOCKET", "/nowhere/collector.sock")
    with pytest.raises(errors.CollectorUnavailableError, match="/nowhere/collector"):
        PyStackProfiler().start_profiling()
    monkeypatch.delenv("PYSTACK_NB_SOCKET")
    assert connect() is warm


DEEP = """
import sys
def deep(n):
    if n:
        return deep(n - 1)
    print("deep", flush=True)
    while True:
        pass
sys.setrecursionlimit(10000)
deep(int(sys.argv[1]))
"""


@pytest.mark.parametrize("python", supported(), ids=lambda path: path.parent.parent.name)
@pytest.mark.parametrize(("frames", "too_deep"), [(DEEPEST, False), (DEEPEST + 1, True)])
def test_the_limit_of_depth_is_the_same_on_every_interpreter(python, frames, too_deep):
    # deep(0) and the module are two of them.
    command = [python, "-c", DEEP, str(frames - 2)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as target:
        try:
            target.stdout.readline()
            profiler = PyStackProfiler(hz=999)
            profiler.start_profiling(target.pid)
            time.sleep(0.3)
            recording = profiler.stop_profiling()
        finally:
            target.kill()
    cut = recording.info["incomplete_by_cause"]["too-deep"]
    assert cut == (len(recording.samples) if too_deep else 0)
    assert python_frames(recording).groupby("stack_id").size().max() == DEEPEST


def test_a_process_that_sleeps_costs_nobody_a_timer():
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as target:
        try:
            time.sleep(0.5)
            profiler = PyStackProfiler(hz=9999)
            profiler.start_profiling(target.pid)
            burn(0.5)
            recording = profiler.stop_profiling()
        finally:
            target.kill()
    assert recording.info["counters"]["ticks"] < 50


def test_threads_that_begin_and_end_while_recording_are_sampled():
    tids = []

    def work():
        for _ in range(20):
            thread = threading.Thread(target=burn, args=(0.05,))
            thread.start()
            tids.append(thread.native_id)
            thread.join()

    recording = recorded(work)
    assert set(tids) <= set(recording.samples["tid"])
    per_thread = recording.samples["tid"].value_counts()[tids]
    assert per_thread.between(25, 100).all()


def test_threads_of_this_process_go_by_their_names():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="the waiting one")
    thread.start()
    recording = recorded(lambda: burn(0.1))
    stop.set()
    thread.join()
    names = recording.info["thread_names"]
    assert names[str(thread.native_id)] == "the waiting one"
    assert names[str(threading.get_native_id())] == "MainThread"
