"""Calls on stacks that are switched, as greenlets are."""

from __future__ import annotations


def test_calls_of_greenlets_nest_on_their_own_stacks(probed, greenlets):
    probed.run(
        f"sys.path.append({str(greenlets)!r})\n"
        "import greenlet\n"
        "def worker(number):\n"
        "    for _ in range(50):\n        step(number)\n"
        "def step(number):\n"
        "    leaf(); switch(); leaf()\n"
        "def switch():\n    main.switch()\n"
        "def raises():\n    switch(); raise KeyError\n"
        "def generates():\n"
        "    for _ in range(3): switch(); yield\n"
        "def consumes():\n    for _ in generates(): leaf()\n"
        "def program():\n"
        "    global main\n"
        "    main = greenlet.getcurrent()\n"
        "    workers = [greenlet.greenlet(lambda n=n: worker(n)) for n in range(6)]\n"
        "    workers.append(greenlet.greenlet(consumes))\n"
        "    failing = greenlet.greenlet(raises)\n"
        "    failing.switch()\n"
        "    try:\n        failing.switch()\n"
        "    except KeyError:\n        pass\n"
        "    left = greenlet.greenlet(lambda: worker(9))\n"
        "    left.switch()\n"
        "    while any(workers) or not workers[0].dead:\n"
        "        for each in workers:\n"
        "            if not each.dead: each.switch()\n"
        "            call(2)\n"
        "    left.throw()\n"
        "keep(record(program))\n"
    )
    recording = probed.recording()
    calls = recording.calls
    found = probed.ncalls()
    assert (found["worker"], found["step"], found["switch"]) == (7, 301, 305)
    assert (found["raises"], found["generates"], found["consumes"]) == (1, 4, 1)
    rounds = 51
    assert found["call"] == 7 * rounds
    assert found["leaf"] == 2 * 300 + 1 + 3 + 2 * found["call"]
    names = calls["function"].astype(str)
    around = {"step": {"worker"}, "switch": {"step", "raises", "generates"}}
    for name, callers in around.items():
        parents = calls.loc[names == name, "parent"]
        assert set(names.iloc[parents[parents >= 0]]) == callers
        assert (parents >= 0).all()
    assert calls.loc[names != "Recording.stop", "complete"].all()
    continued = calls[calls["kind"] == "continued"]
    assert {"worker", "step", "switch", "program"} <= set(continued["function"])
