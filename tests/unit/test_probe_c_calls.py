"""Calls of C functions: how they are named, and that they keep to what was chosen."""

from __future__ import annotations


def of_c(recording):
    """Number of calls of C functions by file and name."""
    calls = recording.calls[recording.calls["kind"] == "c-call"]
    found = calls.groupby(["filename", "function"], observed=True).size().to_dict()
    found.pop(("<sys>", "setprofile"), None)
    return found


def test_a_definition_that_serves_several_types_has_a_name_for_each(probed):
    probed.run(
        "import math\n"
        "class Mine(list): pass\nclass Bare: pass\nclass Words(dict): pass\n"
        "def program():\n"
        "    new = tuple.__new__\n    for _ in range(3): new(tuple, ())\n"
        "    new = object.__new__\n    for _ in range(5): new(Bare)\n"
        "    append = mine.append\n    append(1)\n"
        "    append = plain.append\n    append(1)\n"
        "    mine.append(1); plain.append(1)\n"
        "    dict.fromkeys('a'); Words.fromkeys('b')\n"
        "    math.sin(1.0)\n"
        "mine, plain = Mine(), []\n"
        "keep(record(program, c_calls=True))\n"
    )
    assert of_c(probed.recording()) == {
        ("<builtins>", "tuple.__new__"): 3,
        ("<builtins>", "object.__new__"): 5,
        ("<builtins>", "list.append"): 4,
        ("<builtins>", "dict.fromkeys"): 1,
        ("<__main__>", "Words.fromkeys"): 1,
        ("<math>", "sin"): 1,
    }


def test_a_definition_whose_memory_is_used_again_has_its_own_name(probed):
    probed.run(
        "import ctypes\n"
        "class Definition(ctypes.Structure):\n"
        "    _fields_ = [('name', ctypes.c_char_p), ('function', ctypes.c_void_p),\n"
        "                ('flags', ctypes.c_int), ('doc', ctypes.c_char_p)]\n"
        "new = ctypes.pythonapi.PyCFunction_NewEx\n"
        "new.restype = ctypes.py_object\nnew.argtypes = [ctypes.c_void_p] * 3\n"
        "kind = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p)\n"
        "returns = kind(lambda *_: None)\n"
        "pointer = ctypes.cast(returns, ctypes.c_void_p)\n"
        "one = Definition(None, pointer, 4, None)\n"
        "address = ctypes.addressof(one)\n"
        "def program():\n"
        "    for name in (b'first', b'second', b'first'):\n"
        "        one.name = name\n"
        "        function = new(address, None, None)\n"
        "        function(); function()\n"
        "        del function\n"
        "keep(record(program, c_calls=True))\n"
    )
    found = of_c(probed.recording())
    assert found["<built-in>", "first"] == 4
    assert found["<built-in>", "second"] == 2


def test_a_name_is_found_without_running_code_of_the_program(probed):
    probed.run(
        "asked = []\n"
        "class Meta(type):\n"
        "    def __getattribute__(cls, name):\n"
        "        asked.append(name)\n        return type.__getattribute__(cls, name)\n"
        "class Mine(list, metaclass=Meta): pass\n"
        "append, fromkeys = Mine().append, type('Words', (dict,), {}).fromkeys\n"
        "def program():\n    append(1); fromkeys('a')\n"
        "asked.clear()\n"
        "data = record(program, c_calls=True)\n"
        "assert not asked, asked\nkeep(data)\n"
    )
    assert probed.ncalls()["list.append"] == 1


def test_c_functions_keep_to_the_depth_that_was_asked_for(probed):
    probed.run(
        "def inner():\n    for _ in range(100): len('')\n"
        "def outer():\n    inner(); abs(1); sorted((1, 2), key=one)\n"
        "def one(value): leaf(); return value\n"
        "for depth in (1, 2, 3, 4):\n"
        "    keep(record(outer, depth=depth, c_calls=True), f'depth{depth}')\n"
    )
    expected = {
        "depth1": {"outer": 1},
        "depth2": {"outer": 1, "inner": 1, "abs": 1, "sorted": 1},
        "depth3": {"outer": 1, "inner": 1, "abs": 1, "sorted": 1, "len": 100, "one": 2},
    }
    expected["depth4"] = expected["depth3"] | {"leaf": 2}
    for name, found in expected.items():
        assert {x: n for x, n in probed.ncalls(name).items() if x != "Recording.stop"} == found
        assert probed.recording(name).calls["depth"].max() == int(name[-1]) - 1


def test_short_calls_of_c_functions_have_no_slice_and_are_counted(probed):
    probed.run(
        "def short():\n    abs(1)\n"
        "def program():\n"
        "    for _ in range(100): short()\n"
        "    sorted((1, 2), key=lambda _: abs(1))\n"
        "keep(record(program, min_us=1e7, c_calls=True))\n"
    )
    recording = probed.recording()
    assert set(recording.calls["function"]) <= {"Recording.stop"}
    found = probed.ncalls()
    assert [found[name] for name in ("short", "abs", "sorted")] == [100, 102, 1]


def test_c_functions_are_chosen_by_their_modules(probed):
    probed.run(
        "import math\n"
        "def program():\n"
        "    for _ in range(10): math.sin(1.0); len(''); ''.upper()\n"
        "keep(record(program, exclude=('math',), c_calls=True), 'without')\n"
        "keep(record(program, include=('__main__', 'math'), c_calls=True), 'with')\n"
        "keep(record(program, exclude=('<built*',), c_calls=True), 'file')\n"
    )
    assert of_c(probed.recording("without")) == {
        ("<builtins>", "len"): 10,
        ("<builtins>", "str.upper"): 10,
    }
    assert of_c(probed.recording("with")) == {("<math>", "sin"): 10}
    assert of_c(probed.recording("file")) == {("<math>", "sin"): 10}


def test_a_budget_demotes_c_functions_and_counts_those_of_demoted_callers(probed):
    probed.run(
        "from pystack_nb import probe\n"
        "from pystack_nb.probe.cost import Cost\n"
        "def calls_c(value): abs(value)\n"
        "def program():\n"
        "    for _ in range(200):\n"
        "        for _ in range(500): len(''); calls_c(1)\n"
        "probe._costs[True] = Cost(call_ns=1000.0, pass_ns=0.0, c_call_ns=0.0)\n"
        "keep(record(program, budget=0.05, c_calls=True))\n"
    )
    recording = probed.recording()
    found = probed.ncalls()
    assert [found[name] for name in ("len", "calls_c", "abs")] == [100_000] * 3
    demoted = {entry["function"] for entry in recording.info["demoted"]}
    assert demoted >= {"len", "abs", "calls_c"}
    assert recording.info["calls_stopped"] is None
    assert recording.info["call_counters"]["c_stopped"] == 0


def test_a_hook_that_the_probe_takes_away_itself_is_not_another_tool_s(probed):
    probed.run(
        "def many():\n    for _ in range(200_000): len('')\n"
        "def program():\n    many(); call(10)\n"
        "keep(record(program, budget=0.001, c_calls=True), 'budget')\n"
        "keep(record(program, max_events=1000, c_calls=True), 'events')\n"
    )
    for name, counter in (("budget", "c_stopped"), ("events", "max_events")):
        counters = probed.recording(name).info["call_counters"]
        assert counters[counter] == 1
        assert counters["hook_taken"] == 0


def test_a_c_function_inside_of_itself_counts_each_moment_once(probed):
    probed.run(
        "def nest(depth):\n"
        "    sorted((1,), key=lambda _: nest(depth - 1) if depth else sum(range(300_000)))\n"
        "def program():\n    nest(30)\n"
        "keep(record(program, min_us=1e8, c_calls=True))\n"
    )
    table = probed.recording().functions().set_index("function")
    assert table.loc["sorted", "ncalls"] == 31
    assert 0 < table.loc["sorted", "total_ns"] <= table.loc["program", "total_ns"]
