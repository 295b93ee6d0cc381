"""Batches of calls on their way from a probe's shared memory into the recording's file."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import tempfile
import time

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pytest


HERE = Path(__file__).parent
BPF = HERE.parents[1] / "bpf"
ALICE, BOB = 42001, 42002

CALLS, CLOCK, COUNTS = 9, 10, 11
REST = 1
WORDS = 2042  # of a full batch

PREAMBLE = """
import ctypes, json, os, resource, signal, sys, threading
from pystack_nb.collector.client import connect
from pystack_nb.errors import PystackError

SEALED = 2 | 4  # against shrinking and growing

def tell(value):
    print(json.dumps(value), flush=True)

def load(path):
    library = ctypes.CDLL(path)
    for name in ("sent", "drained"):
        getattr(library, name).restype = ctypes.c_uint64
    library.set_counter.argtypes = [ctypes.c_int, ctypes.c_uint64]
    library.set_count.argtypes = [ctypes.c_int, ctypes.c_uint64, ctypes.c_uint64]
    library.reach.argtypes = [ctypes.c_void_p]
    return library

def address_of(library, name="pystack_probe_site"):
    return ctypes.cast(getattr(library, name), ctypes.c_void_p).value

def collector_of(client):
    return client._collector.pid

def record(fd, path="spool", site=None, **options):
    client = connect()
    options = {"sample": False, **options}
    with open(path, "wb") as file:
        site = address_of(probe) if site is None else site
        client.start(file.fileno(), calls_fd=fd, site=site, **options)
    return client

def refused(fd, **options):
    try:
        record(fd, **options)
    except PystackError as error:
        tell([type(error).__name__, str(error)])
    else:
        tell("taken")
"""
PROBE = "probe = load({library!r})\nmemory = probe.make(SEALED, probe.shared_size())\n"


class Batch(NamedTuple):
    """A ``PST_CALLS`` record."""

    rest: bool
    ts_ns: int
    pid: int
    tid: int
    cpu: int
    comm: bytes
    thread: int
    own_tid: int
    count: int
    sequence: int
    words: tuple[int, ...]


def build(folder, *definitions):
    path = folder / f"batches{len(list(folder.glob('*.so')))}.so"
    options = ["-O1", "-g", "-shared", "-fPIC", f"-I{BPF}", *definitions]
    subprocess.run(["cc", *options, "-o", path, HERE / "programs" / "batches.c"], check=True)
    return path


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return str(build(tmp_path_factory.mktemp("probe")))


@pytest.fixture
def probing(notebook, library):
    """Run a program that has loaded such a probe."""
    return lambda program: notebook(PREAMBLE + PROBE.format(library=library) + program)


def records_of(data):
    """Each whole record of a file without a header: its type, flags and bytes."""
    at = 0
    while at < len(data):
        magic, count, size = struct.unpack_from("<IIQ", data, at)
        assert magic == 0x42545350
        sizes = struct.unpack_from(f"<{count}I", data, at + 16)
        at += 16 + (4 * count + 7) // 8 * 8
        assert at + size <= len(data)
        for padded in sizes:
            length, kind, flags = struct.unpack_from("<IHH", data, at)
            yield kind, flags, data[at : at + length]
            at += padded


def batches_of(data):
    """The batches of each thread, in the order of the file."""
    found = defaultdict(list)
    for kind, flags, record in records_of(data):
        if kind == CALLS:
            ts_ns, pid, tid, cpu, _, comm = struct.unpack_from("<QIIII16s", record, 8)
            thread, own_tid, count, _, sequence, *_ = struct.unpack_from("<4I4Q", record, 48)
            words = struct.unpack(f"<{count}Q", record[96:])
            facts = flags == REST, ts_ns, pid, tid, cpu, comm.rstrip(b"\0")
            found[thread].append(Batch(*facts, thread, own_tid, count, sequence, words))
    return found


def is_whole(batch):
    return batch.words == tuple(batch.sequence << 16 | n for n in range(batch.count))


def spool(tmp_path, name="spool"):
    return (tmp_path / name).read_bytes()


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_batches_of_several_threads_arrive_whole_and_in_order_with_kernel_facts(probing, tmp_path):
    before = time.monotonic_ns()
    client = probing(
        f"client = record(memory)\ntids = dict()\n"
        "def work(index):\n"
        "    probe.begin(index)\n"
        "    tids[index + 1] = threading.get_native_id()\n"
        f"    probe.send_batches(index, 10 * (index + 1), {WORDS} - index)\n"
        "threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "tell([client.stop(), tids, os.getpid()])"
    )
    facts, tids, pid = client.said()
    after = time.monotonic_ns()
    found = batches_of(spool(tmp_path))
    assert set(facts["lost_by_cause"].values()) == {0}
    assert {str(thread): batches[0].tid for thread, batches in found.items()} == tids
    for thread, batches in found.items():
        assert [batch.sequence for batch in batches] == list(range(10 * thread))
        assert all(is_whole(batch) and batch.count == WORDS + 1 - thread for batch in batches)
        assert not any(batch.rest for batch in batches)
        times = [batch.ts_ns for batch in batches]
        assert before < times[0]
        assert times[-1] < after
        assert times == sorted(times)
        for batch in batches:
            assert (batch.pid, batch.tid) == (pid, batch.own_tid)
            assert batch.cpu < os.cpu_count()
            assert batch.comm.startswith(b"python")


def test_what_was_not_sent_arrives_when_the_recording_is_stopped(probing, tmp_path):
    client = probing(
        "client = record(memory)\n"
        f"probe.begin(0); probe.send_batches(0, 2, {WORDS}); probe.store(0, 7)\n"
        "probe.begin(1); probe.store(1, 1)\n"
        "probe.begin(2)\n"
        "client.stop()\ntell(os.getpid())"
    )
    pid = client.said()
    found = batches_of(spool(tmp_path))
    assert [(b.sequence, b.count, b.rest) for b in found[1]] == [
        (0, WORDS, False),
        (1, WORDS, False),
        (2, 7, True),
    ]
    assert [(b.sequence, b.count, b.rest) for b in found[2]] == [(0, 1, True)]
    assert found[3] == []
    assert all(map(is_whole, found[1] + found[2]))
    assert {(b.pid, b.tid, b.own_tid) for b in found[1] + found[2]} == {(pid, pid, pid)}


def test_counts_counters_and_clocks_arrive(probing, tmp_path):
    client = probing(
        "probe.set_clock(1)\nclient = record(memory)\n"
        "probe.set_count(1, 5, 700); probe.set_count(65535, 2**40, 3)\n"
        "probe.set_count(2, 0, 9); probe.set_counter(3, 2**50)\n"
        "facts = client.stop()\ntell([facts['start_ns'], facts['end_ns']])"
    )
    start_ns, end_ns = client.said()
    found = [(kind, record) for kind, _, record in records_of(spool(tmp_path))]
    (counts,) = [record for kind, record in found if kind == COUNTS]
    count, *counters = struct.unpack_from("<I4x16Q", counts, 8)
    assert counters == [0, 0, 0, 2**50] + 12 * [0]
    codes = [struct.unpack_from("<I4xQQ", counts, 144 + 24 * n) for n in range(count)]
    assert codes == [(1, 5, 700), (65535, 2**40, 3)]
    pairs = [struct.unpack_from("<I4xQQQ", record, 8) for kind, record in found if kind == CLOCK]
    (first, before, begun, after), (last, before_end, end, after_end) = pairs
    assert (first, last) == (1, 1)
    assert before < after < before_end < after_end
    assert begun <= start_ns < end_ns <= end


def test_where_the_clock_is_the_counter_a_pair_says_one_time(probing, tmp_path):
    client = probing("client = record(memory)\nclient.stop()\ntell('stopped')")
    assert client.said() == "stopped"
    pairs = [
        struct.unpack_from("<I4xQQQ", record, 8)
        for kind, _, record in records_of(spool(tmp_path))
        if kind == CLOCK
    ]
    assert [clock for clock, *_ in pairs] == [0, 0]
    assert all(before == ns == after for _, before, ns, after in pairs)


def test_what_was_not_sent_arrives_when_the_process_leaves(probing, tmp_path, eventually):
    client = probing(
        "client = record(memory)\nprobe.begin(0)\nprobe.send_batches(0, 3, 5)\nprobe.store(0, 4)\n"
        "tell(collector_of(client))\nos._exit(3)"
    )
    collector = client.said()
    eventually(lambda: ended(collector))
    batches = batches_of(spool(tmp_path))[1]
    assert [(b.sequence, b.count, b.rest) for b in batches] == [
        (0, 5, False),
        (1, 5, False),
        (2, 5, False),
        (3, 4, True),
    ]
    assert all(map(is_whole, batches))


def test_a_kill_in_the_middle_of_a_batch_loses_nothing(probing, tmp_path, eventually):
    # GIVEN a process that stores words without an end
    client = probing(
        "client = record(memory)\n"
        "def work(index):\n"
        "    probe.begin(index)\n"
        "    probe.go_on_for_ever(index)\n"
        "for n in range(2): threading.Thread(target=work, args=(n,)).start()\n"
        "tell(collector_of(client))"
    )
    collector = client.said()
    eventually(lambda: (tmp_path / "spool").stat().st_size > 1 << 20)
    # WHEN it is killed
    client.process.send_signal(signal.SIGKILL)
    client.process.wait()
    # THEN all it stored is there, and what it had not sent comes last
    eventually(lambda: ended(collector))
    found = batches_of(spool(tmp_path))
    assert set(found) == {1, 2}
    for batches in found.values():
        sent = {batch.sequence for batch in batches if not batch.rest}
        rest = [batch.sequence for batch in batches if batch.rest]
        assert sent == set(range(len(sent)))
        # Killed between the copy and the next batch, it is there twice.
        assert rest in ([], [len(sent)], [len(sent) - 1])
        assert all(map(is_whole, batches))
        assert all(batch.count == WORDS for batch in batches if not batch.rest)


def test_a_probe_that_waits_for_the_drain_loses_nothing(probing, tmp_path):
    client = probing(
        "client = record(memory)\nprobe.begin(0)\nprobe.send_batches(0, 20_000, 3)\n"
        "facts = client.stop()\ntell([facts['lost_by_cause'], probe.sent(), probe.drained()])"
    )
    lost, sent, drained = client.said()
    assert set(lost.values()) == {0}
    assert sent == drained == 20_000
    batches = batches_of(spool(tmp_path))[1]
    assert [batch.sequence for batch in batches] == list(range(20_000))
    assert all(map(is_whole, batches))


def test_batches_that_can_not_be_copied_are_counted_and_not_waited_for(probing, tmp_path):
    # GIVEN more of them than may be on their way
    client = probing(
        "client = record(memory)\nprobe.begin(0)\n"
        "for _ in range(600): probe.reach(8)\n"
        "probe.send_too_long(0)\nprobe.send_batches(0, 1, 3)\n"
        "facts = client.stop()\ntell(facts['lost_by_cause'])"
    )
    lost = client.said()
    assert lost.pop("calls-not-copied") == 601
    assert set(lost.values()) == {0}
    assert [(b.sequence, b.count) for b in batches_of(spool(tmp_path))[1]] == [(1, 3)]


def test_batches_that_the_disk_has_no_room_for_are_counted(probing, tmp_path):
    client = probing(
        "_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))\n"
        f"client = record(memory)\nprobe.begin(0)\nprobe.send_batches(0, 2000, {WORDS})\n"
        "probe.store(0, 5)\nfacts = client.stop()\ntell(facts)"
    )
    facts = client.said()
    assert facts["reason"] == "spool-full"
    lost = facts["lost_by_cause"]
    data = spool(tmp_path)
    assert len(data) <= 1 << 20
    kept = data.count(struct.pack("<IHH", 96 + 8 * WORDS, CALLS, 0))
    # The last one's beginning may be in the file, and its end not.
    assert lost.pop("calls-disk-full") in (2001 - kept, 2002 - kept)
    assert set(lost.values()) == {0}


def test_samples_and_calls_come_in_one_recording(probing, tmp_path):
    client = probing(
        "client = record(memory, sample=True, hz=999)\nprobe.begin(0)\n"
        "def work():\n    while os.times().user < used + 0.5: sum(range(1000))\n"
        "used = os.times().user\nwork()\nprobe.send_batches(0, 5, 3)\ntell(client.stop()['hits'])"
    )
    assert client.said() > 0
    data = spool(tmp_path)
    assert len(batches_of(data)[1]) == 5
    assert any(kind == 1 for kind, _, _ in records_of(data))


def test_without_samples_there_is_no_timer(probing, tmp_path):
    client = probing(
        "client = record(memory)\nprobe.begin(0)\n"
        "used = os.times().user\n"
        "while os.times().user < used + 0.3: sum(range(1000))\n"
        "facts = client.stop()\ntell([facts['ticks'], facts['hits']])"
    )
    assert client.said() == [0, 0]
    assert not any(kind == 1 for kind, _, _ in records_of(spool(tmp_path)))


def test_the_uprobe_stays_attached_between_recordings_of_one_client(probing, tmp_path):
    program = (
        "def events(client):\n"
        "    folder = f'/proc/{collector_of(client)}/fd'\n"
        "    return [os.readlink(f'{folder}/{n}') for n in os.listdir(folder)].count(\n"
        "        'anon_inode:[perf_event]')\n"
        "for name in ('first', 'second'):\n"
        "    client = record(memory, name)\n"
        "    probe.begin(0); probe.send_batches(0, 3, 2); tell(events(client))\n"
        "    client.stop(); tell(events(client))\n"
        "    probe.send_batches(0, 2, 2)  # while nothing is recorded\n"
    )
    assert probing(program).finish() == [1, 1, 1, 1]
    for name in ("first", "second"):
        batches = batches_of(spool(tmp_path, name))[1]
        assert [batch.sequence for batch in batches] == [0, 1, 2]


def test_clients_at_once_get_their_own_batches_only(probing, tmp_path):
    program = (
        "client = record(memory, str(os.getpid()))\nprobe.begin(0)\ntell(os.getpid())\n"
        "sys.stdin.readline()\nprobe.send_batches(0, 500, 3)\ntell(client.stop()['lost_by_cause'])"
    )
    clients = [probing(program) for _ in range(2)]
    pids = [client.said() for client in clients]
    for client in clients:
        client.go_on()
    for client in clients:
        assert set(client.said().values()) == {0}
    for pid in pids:
        batches = batches_of(spool(tmp_path, str(pid)))[1]
        assert [(b.pid, b.sequence) for b in batches] == [(pid, n) for n in range(500)]


def test_a_forked_child_that_restores_the_site_sends_nothing_and_may_record_itself(
    probing, tmp_path
):
    client = probing(
        "client = record(memory)\nprobe.begin(0)\nprobe.send_batches(0, 2, 2)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    probe.restore_site()\n"
        "    probe.send_batches(1, 3, 2)\n"
        "    client = record(probe.make(SEALED, probe.shared_size()), 'childs')\n"
        "    probe.begin(0)\n"
        "    probe.send_batches(0, 5, 2)\n"
        "    client.stop()\n"
        "    os._exit(7)\n"
        "tell(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "probe.send_batches(0, 2, 2)\ntell([client.stop()['lost_by_cause'], os.getpid(), child])"
    )
    assert client.said() == 7
    lost, parent, child = client.said()
    assert set(lost.values()) == {0}
    for name, pid, count in (("spool", parent, 4), ("childs", child, 5)):
        found = batches_of(spool(tmp_path, name))
        assert [(b.pid, b.sequence) for b in found.pop(1)] == [(pid, n) for n in range(count)]
        assert not any(found.values())


# What else may be passed as the probe's memory, and what is said about it.
MEMORIES = {
    "probe.make(2, probe.shared_size())": "not sealed against shrinking and growing",
    "probe.make(4, probe.shared_size())": "not sealed against shrinking and growing",
    "probe.make(0, probe.shared_size())": "not sealed against shrinking and growing",
    "probe.make(SEALED | 8, probe.shared_size())": "sealed against writing",
    "probe.make(SEALED | 16, probe.shared_size())": "sealed against writing",
    "probe.make(SEALED, 4096)": "bytes long",
    "probe.make(SEALED, probe.shared_size() + 4096)": "bytes long",
    "os.open('file', os.O_RDWR | os.O_CREAT)": "not a memfd",
    "os.pipe()[0]": "not a memfd",
    "os.open(f'/proc/self/fd/{memory}', os.O_RDONLY)": "not open for reading and writing",
    "(os.pwrite(memory, bytes(8), 0), memory)[1]": "another version",
    "(os.pwrite(memory, bytes(4), 8), memory)[1]": "another version",
    "(os.fchown(memory, 42001, 42001), memory)[1]": "belongs to another user",
}


def test_memory_that_could_harm_its_reader_is_refused(probing):
    client = probing("".join(f"refused({memory})\n" for memory in MEMORIES))
    answers = client.finish()
    assert [kind for kind, _ in answers] == ["SpoolError"] * len(MEMORIES)
    for (_, message), reason in zip(answers, MEMORIES.values(), strict=True):
        assert reason in message
        assert message.endswith("on both sides.")


def test_an_address_that_is_no_site_is_refused(probing):
    places = {
        "1": "nothing is mapped there",
        "2**70": "nothing is mapped there",
        "-1": "nothing is mapped there",
        "ctypes.addressof(kept)": "no program's code is mapped there",
        "address_of(probe, 'shared_size')": "does not lie there",
        "address_of(probe, 'other_function')": "does not lie there",
        "address_of(probe) + 1": "does not lie there",
        "address_of(probe) - 1": "does not lie there",
        "address_of(ctypes.CDLL(None), 'Py_IsInitialized')": "does not lie there",
    }
    client = probing(
        "import mmap\nkept = ctypes.c_char.from_buffer(mmap.mmap(-1, 4096))\n"
        + "".join(f"refused(memory, site={place})\n" for place in places)
    )
    answers = client.finish()
    assert [kind for kind, _ in answers] == ["CollectorError"] * len(places)
    for (_, message), reason in zip(answers, places.values(), strict=True):
        assert reason in message


@pytest.mark.parametrize(
    ("definitions", "reason"),
    [
        (["pystack_probe_site", "other_function", "0x90, 0x90, 0x90, 0x90, 0x90"], "five-byte nop"),
        (["other_function", "pystack_probe_sites", "0x0f, 0x1f, 0x44, 0, 0"], "does not lie there"),
    ],
    ids=["not-a-nop", "another-name"],
)
def test_a_function_that_is_no_site_is_refused(notebook, tmp_path, definitions, reason):
    site, other, first = definitions
    path = build(tmp_path, f'-DSITE="{site}"', f'-DOTHER="{other}"', f'-DFIRST_BYTES="{first}"')
    client = notebook(
        PREAMBLE
        + PROBE.format(library=str(path))
        + f"refused(memory, site=address_of(probe, {site!r}))"
    )
    kind, message = client.said()
    assert kind == "CollectorError"
    assert reason in message


def test_calls_of_another_process_are_refused_with_what_is_possible_instead(probing):
    client = probing(
        "child = os.fork()\nif child == 0: signal.pause()\n"
        "refused(memory, pid=child)\nos.kill(child, signal.SIGKILL)"
    )
    kind, message = client.said()
    assert kind == "CollectorError"
    assert "sample another process" in message


def test_after_a_refusal_the_same_client_records(probing, tmp_path):
    client = probing(
        "refused(memory, site=1)\nclient = record(memory)\nprobe.begin(0)\n"
        "probe.send_batches(0, 2, 2)\n"
        "tell(client.stop()['reason'])"
    )
    assert client.said()[0] == "CollectorError"
    assert client.said() == "stopped"
    assert len(batches_of(spool(tmp_path))[1]) == 2


def test_memory_full_of_rubbish_ends_like_any_other(probing, tmp_path):
    client = probing(
        "client = record(memory)\nprobe.begin(0)\nprobe.send_batches(0, 1, 2)\n"
        "probe.fill_with_rubbish()\n"
        "tell(client.stop()['reason'])\n"
        "memory = probe.make(SEALED, probe.shared_size())\nclient = record(memory, 'next')\n"
        "probe.begin(0)\nprobe.send_batches(0, 2, 2)\ntell(client.stop()['reason'])"
    )
    assert client.said() == "stopped"
    assert client.said() == "stopped"
    found = batches_of(spool(tmp_path))
    assert all(batch.count <= WORDS for batches in found.values() for batch in batches)
    (counts,) = [record for kind, _, record in records_of(spool(tmp_path)) if kind == COUNTS]
    (count,) = struct.unpack_from("<I", counts, 8)
    assert count <= 65536
    assert len(counts) == 144 + 24 * count
    assert len(batches_of(spool(tmp_path, "next"))[1]) == 2


@pytest.fixture
def public_library(library):
    """The library where every user can load it."""
    folder = Path(tempfile.mkdtemp(prefix="pystack_nb-public-"))
    folder.chmod(0o755)
    yield shutil.copy(library, folder / "batches.so")
    shutil.rmtree(folder)


USER = """
import ctypes
probe = ctypes.CDLL({library!r})
memory = probe.make(6, probe.shared_size())
site = ctypes.cast(probe.pystack_probe_site, ctypes.c_void_p).value
c = connect(SOCKET)
file = memory_file()
def begin(site=site, fds=None, **options):
    fds = [file, memory] if fds is None else fds
    return ask(c, START, dict(hz=99, sample=False, calls=dict(site=site), **options), fds)
"""


def test_a_user_who_is_not_root_records_calls_by_the_service(service, public_library, tmp_path):
    client = service.stranger(
        USER.format(library=str(public_library))
        + "tell(begin()[0])\nprobe.begin(0)\nprobe.send_batches(0, 100, 5)\nprobe.store(0, 2)\n"
        "tell(ask(c, STOP)[1])\ntell(os.pread(file, 1 << 20, 0).hex())",
        ALICE,
    )
    assert client.said() == 64
    facts = client.said()
    assert facts["reason"] == "stopped"
    assert set(facts["lost_by_cause"].values()) == {0}
    batches = batches_of(bytes.fromhex(client.said()))[1]
    assert [(b.sequence, b.rest) for b in batches] == [(n, n == 100) for n in range(101)]
    assert all(map(is_whole, batches))


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ("begin(fds=[file])", "START without a descriptor"),
        ("begin(fds=[file, memory, memory])", "too many descriptors"),
        ("begin(site=None)", "malformed START"),
        ("begin(site='0')", "malformed START"),
        ("begin(site=True)", "malformed START"),
        ("ask(c, START, dict(hz=99, calls=1), [file, memory])", "malformed START"),
        ("ask(c, START, dict(hz=99, calls={}), [file, memory])", "malformed START"),
        ("ask(c, START, dict(hz=99, sample=1), [file])", "malformed START"),
    ],
)
def test_a_malformed_request_for_calls_ends_its_connection(service, public_library, request_, said):
    client = service.stranger(
        USER.format(library=str(public_library)) + f"tell({request_})\ntell(receive(c))", ALICE
    )
    (_, body), after = client.finish()
    assert body["error"] == "protocol"
    assert said in body["message"]
    assert after is None
