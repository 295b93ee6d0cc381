# ruff: noqa: T201, PLC2401, N802 - it prints for the test, and odd names are what is tested
"""Runs code whose names and lines are hard to get right, and knows what is true.

Every function burns its time in one loop, so that the true line of a sample is one of few. It
prints a line when it is ready and runs until it is killed.
"""

import time


ROUNDS = 400


def burn(rounds):
    total = 0
    for i in range(rounds):
        total += i * i
    return total


# Code objects that live for microseconds; the next one gets the same addresses. Each has a name,
# a file and a line of its own that must stay together: function f_7 is in file <made 7>, line 7.
TEMPLATE = """{skip}
def f_{i}(rounds):
    total = 0
    for k in range(rounds):
        total += k * k
    return total
f_{i}(2000)
"""


def made(i):
    source = TEMPLATE.format(i=i, skip="\n" * i)
    exec(compile(source, f"<made {i:03}>", "exec"), {})


def lambdas(n):
    for i in range(n):
        exec(f"(lambda rounds: [k * {i} for k in range(rounds)])(1000)", {})


class Żółw:
    def π(self, rounds):
        return burn(rounds)


def 漢字(rounds):
    def inner_字():
        return burn(rounds)

    return inner_字()


def generate(rounds):
    while True:
        burn(rounds)
        yield


# A line table of far more than 4096 bytes, and the time is spent near its end.
LONG = "def long(rounds):\n" + "    x = 1\n" * 20000 + "    while rounds:\n        rounds -= 1\n"
LONG_LINE = 20002
NAMESPACE: dict = {}
exec(
    compile(LONG, "/long/" + "d" * 200 + "/" + "e" * 250 + "/" + "f" * 250 + "/x.py", "exec"),
    NAMESPACE,
)
long = NAMESPACE["long"]


def main():
    turtle = Żółw()
    generator = generate(ROUNDS)
    print("ready", flush=True)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for i in range(40):
            made(i)
        lambdas(20)
        for _ in range(20):
            turtle.π(ROUNDS)
            漢字(ROUNDS)
            next(generator)
            list(map(burn, [ROUNDS]))
        long(50000)


main()
