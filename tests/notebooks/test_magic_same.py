"""Cells of many kinds, each run plainly and under ``%%pystack``: a reader sees the same."""

from __future__ import annotations

import re

import kernels
import pytest

from kernels import plain


pytestmark = pytest.mark.bpf

# Where lines are told, the plain cell gets a line in the place of the magic's.
CELLS = {
    "value": "1+1",
    "silenced": "1+1;",
    "last value": "_",
    "comment": "# nothing else",
    "trailing lines": "1\n\n\n",
    "carriage returns": "x=1\r\nx",
    "form feed": "x=1\n\x0cx",
    "indented": "   a=1\n   b=2\n   a+b",
    "prompt": ">>> 1+2",
    "magic in a text": "s='''\n%%pystack\n'''\ns",
    "text of lines": 's = """a\n  b\n"""\ns',
    "shell command": "!echo hi",
    "shell assignment": "a = !echo x\na",
    "line magic": "%pwd",
    "command without percent": "ls /nonexistent",
    "unknown line magic": "%nosuchmagic",
    "unknown cell magic": "%%nosuchcell\nx",
    "script": "%%bash\necho q",
    "html": "%%html\n<b>x</b>",
    "timeit": "%timeit -n1 -r1 -q pass",
    "printing loop": "for i in range(2): print(i)\ni",
    "standard error": "import sys\nprint('x', file=sys.stderr)",
    "display": "display(3)",
    "next input": 'get_ipython().set_next_input("z")',
    "await": "import asyncio\nawait asyncio.sleep(0)\n5",
    "asynchronous loop": "async def ag():\n    yield 1\n[x async for x in ag()]",
    "name of the module": "__name__",
    "namespace": "get_ipython().user_ns is globals()",
    "count of cells": "get_ipython().execution_count",
    "main thread": "import threading\nthreading.current_thread() is threading.main_thread()",
    "threads": "import threading\nlen(threading.enumerate())",
    "hooks": "import sys\nsys.gettrace(), sys.getprofile(), sys.exc_info()",
    "signals": "import signal\nsignal.getsignal(2) is signal.default_int_handler",
    "annotations": "from __future__ import annotations\ndef h(x: Nope): pass\nh.__annotations__",
    "source": "def g():\n    return 1\nimport inspect\nprint(inspect.getsource(g))",
    "exit": 'raise SystemExit("bye")',
    "surrogate": '"\\ud800"',
    "history": "get_ipython().history_manager.input_hist_raw[-1].splitlines()[-1]",
}
CELLS_WITH_LINES = {
    "own line": "import sys\nsys._getframe().f_lineno",
    "code": "import sys\nx = sys._getframe().f_code\nx.co_name, x.co_firstlineno",
    "error": "x = 1\n\n1 / 0",
    "children": "import os\nos.waitpid(-1, os.WNOHANG)",
    "cause": (
        "def f():\n    try:\n        1/0\n    except Exception as e:\n"
        '        raise ValueError("x") from e\nf()'
    ),
    "group": 'raise ExceptionGroup("g",[ValueError(1)])',
    "assertion": 'assert 1==2, "no"',
    "recursion": "def r(): r()\nr()",
    "error in a library": "import json\njson.loads('{')",
    "error behind an await": "import asyncio\nawait asyncio.sleep(0)\nundefined_name",
    "warning": 'import warnings\nwarnings.warn("w")',
    "warning of the compiler": "x = 1\nx is 1",
    "printed traceback": "import traceback\ntraceback.print_stack(limit=-1)",
    "syntax error": "if:",
    "tabs": "if 1:\n\tx=1\n        y=2",
    "unclosed": "x = 1\n(1",
}


@pytest.fixture(scope="module")
def two():
    with kernels.kernel() as one, kernels.kernel() as other:
        for each in (one, other):
            each.run("%load_ext pystack_nb")
            each.run("%%pystack --quiet\n1")
        yield one, other


def seen(outcome):
    """What a reader sees, but for what differs from run to run, and for the line of the magic."""
    # The kernel sends what was printed in pieces, cut by time.
    printed = [outcome.stdout, outcome.stderr]
    shown = [outcome.status, outcome.error, outcome.message, *printed]
    for output in outcome.outputs:
        kind, content = output["msg_type"], output["content"]
        if kind == "error":
            shown += [kind, plain(content["traceback"])]
        elif kind in ("execute_result", "display_data"):
            shown += [kind, str(content["data"])]
    text = re.sub(r"0x[0-9a-f]+|(\bipykernel_\d+/)?\b\d+\.py", "…", "\n".join(shown))
    return re.sub(r"(?m)^ +1 #?$", "      1", text)


@pytest.mark.parametrize("name", [*CELLS, *CELLS_WITH_LINES])
def test_a_cell_shows_under_the_magic_what_it_shows_without(two, name):
    without, under = two
    above = "" if name in CELLS else "#\n"
    cell = (CELLS | CELLS_WITH_LINES)[name]
    expected = seen(without.run(above + cell))
    assert seen(under.run("%%pystack --quiet\n" + cell)) == expected
