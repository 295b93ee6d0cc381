"""Programs that call in every way there is, each the same whenever it is run.

Run by each interpreter under test, twice: recorded, and under `sys.setprofile`.
"""

import asyncio
import collections
import contextlib
import ctypes
import dataclasses
import functools
import gc
import itertools
import re
import signal
import threading
import weakref


MANY = 30  # the interpreter specialises within fewer calls


class OopsError(Exception):
    def __init__(self, depth):
        super().__init__(depth)


def exceptions():
    def raises(depth):
        if not depth:
            raise OopsError(depth)
        try:
            raises(depth - 1)
        finally:
            clean()

    def clean():
        with contextlib.suppress(KeyError):
            fail()

    def fail():
        raise KeyError

    def chained():
        try:
            fail()
        except KeyError as error:
            raise OopsError(1) from error

    for depth in range(MANY):
        with contextlib.suppress(OopsError):
            raises(depth % 5)
        with contextlib.suppress(OopsError):
            chained()


def numbers(count):
    got = []
    for number in range(count):
        got.append((yield number))  # noqa: PERF401 - a generator is what is called
    return got


def generators():
    def delegates(count):
        result = yield from numbers(count)
        return len(result)

    def tree(depth):
        if depth:
            yield from tree(depth - 1)
            yield depth
            yield from tree(depth - 1)

    def catches():
        while True:
            try:
                yield
            except KeyError:
                yield "caught"

    for _ in range(MANY):
        assert list(numbers(3)) == [0, 1, 2]
        assert sum(1 for _ in delegates(4)) == 4
        assert len(list(tree(3))) == 7
        generator = numbers(3)
        next(generator)
        generator.send(1)
        generator.close()
        caught = catches()
        next(caught)
        assert caught.throw(KeyError()) == "caught"
        with contextlib.suppress(ValueError):
            caught.throw(ValueError())
        next(numbers(2))  # let go of in the middle
        numbers(2)  # never begun
        numbers(2).close()


def coroutines():
    async def leaf(number):
        await asyncio.sleep(0)
        return number

    async def middle(number):
        return sum(await asyncio.gather(leaf(number), leaf(number + 1)))

    async def source(count):
        try:
            for number in range(count):
                await asyncio.sleep(0)
                yield number
        finally:
            await leaf(0)

    async def main():
        assert [await middle(n) for n in range(5)] == [1, 3, 5, 7, 9]
        assert [x async for x in source(4)] == [0, 1, 2, 3]
        values = source(4)
        assert await values.asend(None) == 0
        await values.aclose()
        values = source(4)
        await anext(values)
        with contextlib.suppress(KeyError):
            await values.athrow(KeyError())
        task = asyncio.ensure_future(asyncio.sleep(100))
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(main())


def callbacks():
    def key(value):
        return -value

    def add(left, right):
        return left + right

    def upper(match):
        return match[0].upper()

    def compare(left, right):
        return left[0] - right[0]

    class Missing(dict):
        def __missing__(self, key):
            return add(key, 1)

    assert sorted(range(MANY), key=key) == [*reversed(range(MANY))]
    assert sum(map(key, range(MANY))) < 0
    assert functools.reduce(add, range(MANY)) == MANY * (MANY - 1) // 2
    assert re.sub("[a-z]", upper, "abc") == "ABC"
    assert max(filter(key, range(MANY)), key=key) == 1
    assert Missing()[1] == 2
    assert functools.partial(add, 1)(2) == 3
    c_int_p = ctypes.POINTER(ctypes.c_int)
    function = ctypes.CFUNCTYPE(ctypes.c_int, c_int_p, c_int_p)(compare)
    values = (ctypes.c_int * 4)(4, 1, 3, 2)
    ctypes.CDLL(None).qsort(values, 4, ctypes.sizeof(ctypes.c_int), function)
    assert list(values) == [1, 2, 3, 4]


class Base:
    def __init__(self, value):
        self.value = value

    def __getattr__(self, name):
        if name != "made":
            raise AttributeError
        return name


class Derived(Base):
    def __init__(self, value):
        super().__init__(value)
        self.helper = Helper(self)

    def __iter__(self):
        return iter(range(3))

    @property
    def doubled(self):
        return self.value * 2


class Helper:
    def __init__(self, owner):
        def seen():
            return owner

        self.seen = seen


class Renamed:
    def prepare(self):
        self.ready = True

    __init__ = prepare


class Refuses:
    def __init__(self):
        raise OopsError(0)


class Meta(type):
    def __call__(cls, *arguments):
        return super().__call__(*arguments)


class Made(metaclass=Meta):
    def __new__(cls, *_):
        return super().__new__(cls)

    def __init__(self, value):
        self.value = value


@dataclasses.dataclass(order=True)
class Point:
    x: int
    y: int = 0

    def __post_init__(self):
        self.z = self.x


def decorated(function):
    @functools.wraps(function)
    def wrapper(*arguments):
        return function(*arguments)

    return wrapper


@decorated
def twice(value):
    return 2 * value


def objects():
    for number in range(MANY):
        derived = Derived(number)
        assert (derived.made, derived.doubled, *derived) == ("made", 2 * number, 0, 1, 2)
        assert derived.helper.seen() is derived
        del derived.helper
        Renamed()
        with contextlib.suppress(OopsError):
            Refuses()
        assert Made(number).value == number
        assert Point(number) < Point(number + 1)
        assert twice(number) == 2 * number
        assert [(lambda: n)() for n in range(2)] == [0, 1]  # noqa: PLC3002 - it is a call

        class Local:
            attribute = number

        assert Local.attribute == number


def finalizers():
    class Ends:
        def __init__(self, partner=None):
            self.partner = partner

        def __del__(self):
            self.note()

        def note(self):
            ended.append(1)

    def told(_):
        ended.append(2)

    def holds():
        kept = Ends()
        return weakref.ref(kept, told)

    ended = []
    gc.collect()
    gc.disable()
    for _ in range(MANY):
        Ends()
        holds()
        cycle = Ends()
        cycle.partner = cycle
        del cycle
    gc.collect()
    gc.enable()
    assert sorted(ended) == 3 * MANY * [1] + MANY * [2]


def signals():
    def handler(number, frame):
        handled.append(inside(number))

    def inside(number):
        return number

    handled = []
    before = signal.signal(signal.SIGUSR1, handler)
    for _ in range(MANY):
        signal.raise_signal(signal.SIGUSR1)
    signal.signal(signal.SIGUSR1, before)
    assert len(handled) == MANY


def fib(number):
    return number if number < 2 else fib(number - 1) + fib(number - 2)


def threads():
    def work(number):
        results.extend(fib(6) for _ in range(number))

    results = []
    started = [threading.Thread(target=work, args=(n,)) for n in range(1, 9)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert len(results) == 36


def made_code():
    for number in range(400):  # freed at once: the addresses come again
        text = f"def made{number}():\n    return {number}\nmade{number}()\n"
        exec(compile(text, __file__, "exec"), {})


def odd_names():
    def plain():
        return inner()

    def inner():
        return 1

    names = ["x" * 60_000, "é" * 30_000, "lone\udc80", "with\0nul", "𝄞", "a.<locals>.b", ""]
    for line, name in enumerate(names, 200_000):
        plain.__code__ = plain.__code__.replace(co_qualname=name, co_firstlineno=line)
        assert plain() == 1


def frees_itself():
    def other():
        return 2

    functions = {}
    text = "def plain():\n    functions.pop('it').__code__ = other\n    return 1\n"
    for _ in range(MANY):
        made = {"functions": functions, "other": other.__code__}
        exec(compile(text, __file__, "exec"), made)
        functions["it"] = made.pop("plain")
        assert functions["it"]() == 1


def long_stack():
    def down(depth):
        return down(depth - 1) + 1 if depth else 0

    assert down(700) == 700


def mixed():
    def walk(depth):
        if depth:
            yield from sorted(walk(depth - 1), key=lambda value: -value)
        yield depth

    for values in itertools.repeat(None, 5):
        assert values is None
        assert collections.deque(walk(8), maxlen=1)


PROGRAMS = [
    exceptions,
    generators,
    coroutines,
    callbacks,
    objects,
    finalizers,
    signals,
    threads,
    made_code,
    odd_names,
    frees_itself,
    long_stack,
    mixed,
]
