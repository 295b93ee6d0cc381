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
