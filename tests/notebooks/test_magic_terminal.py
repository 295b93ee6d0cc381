"""The magic in IPython's own terminal, where no frontend draws pictures."""

from __future__ import annotations

import subprocess
import sys

import pytest


pytestmark = pytest.mark.bpf

SESSION = '''
from IPython.terminal.interactiveshell import TerminalInteractiveShell

shell = TerminalInteractiveShell.instance(simple_prompt=True, colors="NoColor")
shell.run_line_magic("load_ext", "pystack_nb")
shell.run_cell("""%%pystack -o rec
def work():
    return sum(x * x for x in range(300_000))
for _ in range(10): work()
6 * 7""", store_history=True)
rec = shell.user_ns["rec"]
print("roots", sorted(set(rec.stacks.query("depth == 0")["function"])))
print("files", sorted(set(rec.samples["filename"].dropna())))
shell.run_cell("""%%pystack --quiet
import asyncio
await asyncio.sleep(0.01)
1 / 0""", store_history=True)
'''


def test_a_terminal_shows_the_text_form_and_the_cell_is_the_root():
    done = subprocess.run(
        [sys.executable, "-c", SESSION], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout
    assert "Out[1]: 42" in shown
    assert "499 Hz" in shown
    assert "work.<locals>.<genexpr>" in shown
    assert "<svg" not in shown
    assert "roots ['<module>']" in shown
    assert "In[1]" in shown.partition("files ")[2].splitlines()[0]
    assert "line 4" in shown.partition("ZeroDivisionError")[2]
    assert shown.count("Traceback") == 1


TRANSFORMED = '''
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
shell.run_line_magic("load_ext", "pystack_nb")
shell.input_transformers_post.append(lambda lines: [x.replace("3", "4") for x in lines])
shell.run_cell("""%%pystack -o rec --quiet --source inprocess
def leaf(): pass
for _ in range(3): leaf()""", store_history=True)
print("leaves", int((shell.user_ns["rec"].calls["function"] == "leaf").sum()))
'''


def test_calls_are_recorded_where_a_later_extension_changes_the_cell_s_text():
    done = subprocess.run(
        [sys.executable, "-c", TRANSFORMED], capture_output=True, text=True, timeout=100, check=True
    )
    assert "leaves 4" in done.stdout
