# ruff: noqa: T201 - it speaks to the test that started it
"""A typical client program: parses, computes, sleeps, and uses threads, each for a known time.

Prints, as JSON, what it did: seconds of CPU time by function, measured by the threads themselves.
"""

import ast
import json
import threading
import time

from pathlib import Path


SPENT = {}
LOCK = threading.Lock()


def spend(name, work, cpu_seconds):
    """Repeat `work` until this thread has used the CPU time, and note it."""
    begun = time.thread_time()
    while time.thread_time() - begun < cpu_seconds:
        work()
    with LOCK:
        SPENT[name] = SPENT.get(name, 0) + time.thread_time() - begun


def parse_sources():
    spend("parse_sources", lambda: ast.parse(SOURCE), 0.8)


def count_primes():
    def work():
        return [n for n in range(2, 400) if all(n % k for k in range(2, int(n**0.5) + 1))]

    spend("count_primes", work, 0.6)


def sort_numbers():
    numbers = [(n * 7919) % 10007 for n in range(10007)]
    spend("sort_numbers", lambda: sorted(numbers), 0.4)


def wait():
    time.sleep(0.5)


def recurse(depth):
    if depth:
        return recurse(depth - 1)
    return spend("recurse", lambda: sum(range(1000)), 0.3)


SOURCE = Path(ast.__file__).read_text()


def main():
    threads = [
        threading.Thread(target=count_primes, name="primes"),
        threading.Thread(target=sort_numbers, name="sorting"),
    ]
    parse_sources()
    wait()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recurse(60)
    print(json.dumps({"spent": SPENT, "threads": [thread.native_id for thread in threads]}))


main()
