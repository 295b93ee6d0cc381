"""What a recording says about its calls: counters into ``Recording.info``, and into words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from collections.abc import Iterator

    from pystack_nb.calls import Calls
    from pystack_nb.probe import CallOptions
    from pystack_nb.recording import Recording


def tell_calls(info: dict[str, Any], calls: Calls, *, present: bool) -> None:
    """Add to ``info`` what is known of the calls.

    Parameters
    ----------
    info : dict
        Of the recording: gets ``calls``, ``demoted``, ``calls_stopped``, ``calls_stopped_ns``
        and, if there are any records of calls, their causes, their clock and notes.
    calls : Calls
        What was decoded.
    present : bool
        Whether there are any records of calls.
    """
    info["calls"] = len(calls.table)
    info["calls_stopped"] = _stopped(calls)
    info["calls_stopped_ns"] = _last_event_ns(calls) if info["calls_stopped"] else None
    tell_demoted(info, calls.demoted)
    if not present:
        return
    info["clock"] |= {
        "source": calls.clock.source,
        "hz": calls.clock.hz,
        "error_ns": calls.clock.error_ns,
    }
    # The same batches, seen from both ends: missing between others, and not copied.
    lost = max(calls.lost_batches, info["counters"]["calls_lost"])
    info["lost_by_cause"]["calls-lost"] = lost
    info["lost"] += lost
    incomplete = _incomplete(calls)
    info["incomplete_by_cause"] |= incomplete
    info["incomplete"] += sum(incomplete.values())
    info["call_counters"] = calls.counters
    info["notes"] += _notes(calls, lost)


def tell_demoted(info: dict[str, Any], demoted: list[dict[str, Any]]) -> None:
    """Put what was demoted into ``info``, and into its notes in place of what they said of it."""
    before = _of_demoted(info.get("demoted") or [])
    info["demoted"] = demoted
    notes = [x for x in info.get("notes") or [] if x not in before]
    info["notes"] = [*notes, *_of_demoted(demoted)]


def tell_unwanted(recording: Recording, options: CallOptions) -> None:
    """Add a note to a recording whose calls were all left out by choice.

    Parameters
    ----------
    recording : Recording
        With nothing in it that was called, perhaps.
    options : CallOptions
        What was asked for.
    """
    chosen = options.include or options.exclude
    found = len(recording.calls) or len(recording.counts) or recording.info.get("trimmed_calls")
    if chosen and not found:
        note = (
            "nothing that was called is like what was asked for: include and exclude are globs "
            "of files and of modules, not of functions. What a notebook defines is in the module "
            "__main__ and in files such as In[5]; look at the names of files in a recording "
            "without include and exclude"
        )
        if note not in recording.info["notes"]:
            recording.info["notes"].append(note)


def _of_demoted(demoted: list[dict[str, Any]]) -> list[str]:
    counted = sum(x["counted"] for x in demoted)
    cost = f"{_many(len(demoted), 'function')} would have cost more than the budget"
    return [f"{cost}: {_many(counted, 'call')} counted only"] if demoted else []


def _stopped(calls: Calls) -> str | None:
    if calls.counters["max_events"]:
        return "max-events"
    return "budget" if calls.counters["stopped"] else None


def _last_event_ns(calls: Calls) -> int | None:
    ends_ns = calls.table["ts_ns"] + calls.table["dur_ns"]
    return int(ends_ns.max()) if len(ends_ns) else None


def _incomplete(calls: Calls) -> dict[str, int]:
    counters, found = calls.counters, calls.found
    return {
        "calls-unpaired": found["unpaired"],
        "calls-not-named": calls.not_named,
        "calls-not-continued": found["left_out"],
        "calls-without-id": counters["no_id"],
        "threads-without-buffer": counters["no_batch"],
        "deep-recursion": max(counters["deep"], found["gaps"]),
        "sub-interpreters": counters["interpreters"],
        "forked-children": counters["forks"],
        "other-evaluator": min(counters["replaced"], 1),
        "hook-taken": counters["hook_taken"],
        "init-unseen": counters["init_unseen"],
    }


def _notes(calls: Calls, lost: int) -> Iterator[str]:
    counters, found = calls.counters, calls.found
    gaps = max(counters["deep"], found["gaps"])
    facts = [
        (lost, f"{_many(lost, 'batch', 'batches')} of calls did not arrive: calls are missing"),
        (
            found["unpaired"],
            f"the beginning of {_many(found['unpaired'], 'call')} was not recorded",
        ),
        (
            found["left_out"],
            (
                f"{_many(found['left_out'], 'call')} went on after a switch of stacks without "
                "being shown: there were too many switches"
            ),
        ),
        (
            found["short_kept"],
            (
                f"{_many(found['short_kept'], 'short call')} could not be taken out of the table, "
                "and also counted"
            ),
        ),
        (
            gaps,
            (
                f"recursion came near the end of the C stack {_many(gaps, 'time')}: for "
                f"{found['gap_ns'] / 1e9:.3f} s, calls in it were not recorded"
            ),
        ),
        (
            counters["no_batch"],
            (
                f"there was no room for {_many(counters['no_batch'], 'thread')}: calls there were "
                "not, or not all, recorded"
            ),
        ),
        (
            counters["no_id"],
            f"{_many(counters['no_id'], 'call')} of code objects that got no id: not recorded",
        ),
        (
            counters["interpreters"],
            f"{_many(counters['interpreters'], 'sub-interpreter')}: calls there were not recorded",
        ),
        (
            counters["forks"],
            (
                f"{_many(counters['forks'], 'forked child', 'forked children')}: calls there "
                "were not recorded"
            ),
        ),
        (
            counters["hook_taken"],
            (
                f"another tool took the probe's place {_many(counters['hook_taken'], 'time')}: "
                "calls of C functions may be missing, and on Python 3.13 calls of __init__"
            ),
        ),
        (
            counters["init_unseen"],
            (
                f"{_many(counters['init_unseen'], 'function')} became a class's __init__ later: "
                "some of those calls may be missing"
            ),
        ),
        (
            counters["max_events"],
            "the bound on events was reached: later calls were not recorded",
        ),
        (
            counters["stopped"],
            "exact recording would have cost more than its budget: later calls were not recorded",
        ),
        (
            counters["c_stopped"],
            (
                "calls of C functions would have cost more than the budget: later ones were not "
                "recorded"
            ),
        ),
        (
            counters["replaced"] == 1,
            (
                "another frame evaluator came that does not call the probe: calls since then were "
                "not recorded"
            ),
        ),
        (
            counters["replaced"] > 1,
            (
                "another frame evaluator was there for a while: if it does not call the probe, "
                "calls of that time are missing"
            ),
        ),
        (
            counters["gave_up"],
            (
                f"{_many(counters['gave_up'], 'batch', 'batches')} of calls did not wait for the "
                "collector, which did not follow"
            ),
        ),
        (
            not calls.clock.is_sound,
            "the processor's counter could not be measured: durations are in its ticks",
        ),
    ]
    return (note for number, note in facts if number)


def _many(number: int, one: str, several: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"
