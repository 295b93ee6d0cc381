# ruff: noqa: T201 - it speaks to the test that started it
"""Run by each interpreter under test: tells whether a layout is true of itself, by ctypes.

Prints a line when it is up, reads the layout as one line of JSON, and prints one line of JSON:
[what, found, true] for each thing that it compared.
"""

import ctypes
import json
import sys
import threading


def word(address):
    return ctypes.c_uint64.from_address(address).value


def number(address):
    return ctypes.c_int32.from_address(address).value


def observe(layout, notes):
    """Walk our own frames; no call of a Python function in the loop, which would add a frame."""
    word_at = ctypes.c_uint64.from_address
    byte_at = ctypes.c_uint8.from_address
    get_state = ctypes.pythonapi.PyThreadState_Get
    get_state.restype = ctypes.c_void_p
    state = get_state()
    thread = threading.get_ident()
    base = word_at(state + layout["cframe"]).value if layout["cframe"] else state
    frame = word_at(base + layout["current_frame"]).value
    found = []
    while frame:
        code = word_at(frame + layout["frame_code"]).value
        instruction = word_at(frame + layout["frame_instruction"]).value
        owner = byte_at(frame + layout["frame_owner"]).value
        entry = byte_at(frame + layout["frame_entry"]).value if layout["frame_entry"] else None
        found.append((code, instruction - code - layout["code_start"], owner, entry))
        frame = word_at(frame + layout["frame_previous"]).value
    expected = []
    live = sys._getframe()
    while live:
        expected.append((id(live.f_code), live.f_lasti))
        live = live.f_back
    entries = [item for item in found if item[2] == layout["owner_cstack"]]
    found = [item for item in found if item[2] != layout["owner_cstack"]]
    notes.append(("thread id", word(state + layout["thread_id"]), thread))
    notes.append(("thread state", word(thread + layout["thread_state_tls"]), state))
    notes.append(("code objects", [item[0] for item in found], [item[0] for item in expected]))
    # Our own instruction has moved on since; the callers' stand still.
    notes.append(
        ("instructions", [item[1] for item in found[1:]], [item[1] for item in expected[1:]])
    )
    owners = {item[0]: item[2] for item in found}
    notes.append(("owner of a generator", owners[id(generate.__code__)], 1))
    notes.append(("owner of a function", owners[id(observe.__code__)], 0))
    notes.append(("entry frames", bool(entries), layout["owner_cstack"] != 255))
    if layout["frame_entry"]:
        flags = {item[0]: item[3] for item in found}
        notes.append(("called from C", flags[id(enter.__code__)], 1))
        notes.append(("called from Python", flags[id(observe.__code__)], 0))


def enter(layout, notes):
    observe(layout, notes)


def generate(layout, notes):
    # Through C: a new run of the interpreter's loop, which each version marks in its own way.
    yield list(map(enter, [layout], [notes]))


def żółw():  # noqa: PLC2401 - the name is what is tested
    return "π"


def check_code(layout, code, notes):
    notes.append(("type", word(id(code) + 8), layout["code_type"]))
    notes.append(("filename", word(id(code) + layout["code_filename"]), id(code.co_filename)))
    notes.append(("qualname", word(id(code) + layout["code_qualname"]), id(code.co_qualname)))
    notes.append(("linetable", word(id(code) + layout["code_linetable"]), id(code.co_linetable)))
    notes.append(("first line", number(id(code) + layout["code_first_line"]), code.co_firstlineno))
    notes.append(("bytecode", layout["code_start"], type(code).__basicsize__))


def check_text(layout, notes):
    ascii_text, wide, table = "a plain name", żółw.__name__, żółw.__code__.co_linetable
    place = id(ascii_text) + layout["ascii_data"]
    notes.append(("ASCII", ctypes.string_at(place, len(ascii_text)).decode(), ascii_text))
    place = id(wide) + layout["compact_data"]
    notes.append(("UCS-2", ctypes.string_at(place, 2 * len(wide)).decode("utf-16-le"), wide))
    place = id(table) + layout["bytes_data"]
    notes.append(("bytes", ctypes.string_at(place, len(table)).hex(), table.hex()))


def check_versions(layout, notes):
    if layout["code_version"]:
        first, second = (compile(text, "text", "eval") for text in ("1", "2"))
        notes.append(
            (
                "consecutive versions",
                number(id(second) + layout["code_version"]),
                number(id(first) + layout["code_version"]) + 1,
            )
        )


def main():
    print("up", flush=True)
    layout = json.loads(sys.stdin.readline())
    notes = []
    next(generate(layout, notes))
    thread = threading.Thread(target=lambda: next(generate(layout, notes)))
    thread.start()
    thread.join()
    check_code(layout, żółw.__code__, notes)
    check_code(layout, sys.modules["threading"].Thread.run.__code__, notes)
    check_text(layout, notes)
    check_versions(layout, notes)
    print(json.dumps(notes), flush=True)
    sys.stdin.readline()


main()
