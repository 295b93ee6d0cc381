"""Every ``__getitem__`` is seen, although 3.11.0 to 3.11.3 run it inside of its caller.

In particular those of the distribution's CPython: Debian 12 has 3.11.2.
"""

from __future__ import annotations

import pytest

from probed_programs import Probed
from probing import DISTRIBUTION, name


CLASSES = """
def own(self, key):
    return leaf()

class Item:
    def __getitem__(self, key):
        return leaf()

class Derived(Item):
    pass

class Named:
    __getitem__ = lambda self, key: leaf()

def get(item, times=1000):
    for number in range(times):
        item[number]

def made():
    class Local:
        def __getitem__(self, key):
            return leaf()
    return Local()

before = [Item(), Derived(), Named(), made()]
for item in before:
    get(item)
    own(item, 0)
"""


@pytest.fixture(params=[11, DISTRIBUTION], ids=name)
def probed(request, tmp_path):
    return Probed(request.param, tmp_path)


def test_a_getitem_that_the_interpreter_knew_before_the_recording_is_seen(probed):
    probed.run(f"{CLASSES}\nkeep(record(lambda: [get(item) for item in before]))")
    calls = probed.ncalls()
    assert calls["Item.__getitem__"] == 2000
    assert calls["Named.<lambda>"] == calls["made.<locals>.Local.__getitem__"] == 1000
    assert calls["leaf"] == 4000


def test_a_getitem_that_is_made_while_recording_is_seen_from_its_first_call_on(probed):
    probed.run(
        f"""{CLASSES}
record(leaf)  # the probe is loaded, and this was called often before it
def program():
    for _ in range(20):
        get(made(), 100)
    Named.__getitem__ = own
    get(Named(), 100)
    get(type("New", (), {{"__getitem__": own}})(), 100)
keep(record(program))
"""
    )
    calls = probed.ncalls()
    assert calls["made.<locals>.Local.__getitem__"] == 2000
    assert calls["own"] == 200
    assert calls["leaf"] == 2200


def test_a_getitem_that_the_collector_of_garbage_was_told_to_leave_alone_is_seen(probed):
    probed.run(f"import gc\n{CLASSES}\ngc.freeze()\nkeep(record(lambda: get(before[1])))")
    assert probed.ncalls()["Item.__getitem__"] == 1000


def test_a_function_that_is_left_alone_so_and_becomes_a_getitem_later_is_seen(probed):
    probed.run(
        f"import gc\n{CLASSES}\ndef use(times):\n    for _ in range(times): own(0, 0)\nuse(100)\n"
        "gc.freeze()\nrecord(leaf)\nItem.__getitem__ = own\n"
        "keep(record(lambda: get(before[0])))\n"
    )
    assert probed.ncalls()["own"] == 1000


def test_whoever_keeps_the_probe_from_looking_is_told(probed):
    probed.run(
        """
import gc
def hook(event, arguments):
    if event == "gc.get_objects" and refuses: raise PermissionError("no!")
refuses = True
sys.addaudithook(hook)
if sys.version_info < (3, 11, 4):
    try:
        record(leaf)
    except ProfilerStateError as error:
        assert "an audit hook refuses it" in str(error), error
    else:
        raise AssertionError
    refuses, objects = False, gc.get_objects
    gc.get_objects = tuple
    try:
        record(leaf)
    except ProfilerStateError as error:
        assert "no list" in str(error), error
    else:
        raise AssertionError
    gc.get_objects = objects
keep(record(leaf))
"""
    )
    assert probed.ncalls()["leaf"] == 1


def test_a_debugger_does_not_keep_a_getitem_from_being_seen(probed):
    probed.run(
        f"""{CLASSES}
sys.settrace(lambda *_: None)
record(leaf)
sys.settrace(None)
keep(record(lambda: get(before[0])))
"""
    )
    assert probed.ncalls()["Item.__getitem__"] == 1000
