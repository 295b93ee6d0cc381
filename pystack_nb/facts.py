"""What a recording says about itself: its META and STATS records into ``Recording.info``."""

from __future__ import annotations

import json

from typing import TYPE_CHECKING, Any, TypeGuard

from pystack_nb import event_file, wire
from pystack_nb.collector.counters import Counter


if TYPE_CHECKING:
    from pystack_nb.records import Records

_NO_ERROR = ("stopped", "client-gone")
_FEWEST_HITS = 10  # of fewer samples, a rate says nothing


class Facts:
    """The META records, by who wrote them, and the newest counters.

    Attributes
    ----------
    counters : dict of str to int
        The newest PST_STATS, by the names of `Counter` in lower case.
    event_blocks : list of dict
        The events that the process told of itself.
    """

    def __init__(self, records: Records) -> None:
        metas = _read_metas(records)
        self.event_blocks = [x for x in metas if x.get("role") == event_file.ROLE]
        self._metas = [x for x in metas if x.get("role") != event_file.ROLE]
        self._client = self._first("client", None)
        self._start = self._first("collector", "start") or self._first("inprocess", "start")
        self._end = self._first("collector", "end") or self._first("inprocess", "end")
        self._stats_ns, self.counters = _read_stats(records)

    @property
    def hz(self) -> int | None:
        """The rate that was asked for."""
        hz = self._client.get("hz")
        return int(hz) if _is_int(hz) and hz > 0 else None

    @property
    def ended(self) -> bool:
        """Whether the collector came to the end of the recording."""
        return bool(self._end)

    def info(self, first_ns: int | None, last_ns: int | None) -> dict[str, Any]:
        """Tell all but what is counted in the samples themselves.

        Parameters
        ----------
        first_ns, last_ns : int or None
            Times of the first and the last sample: the recording's bounds, when nobody
            told them because its end was never reached.
        """
        start_ns = self._integer("start_ns", first_ns)
        end_ns = self._integer("end_ns", max(self._stats_ns or 0, last_ns or 0) or start_ns)
        lost = {
            "ring-buffer-full": self.counters["ring_full"],
            "disk-full": self.counters["disk_full"],
            "rights-changed": self.counters["denied"],
        }
        source = "inprocess" if self._client.get("source") == "inprocess" else "ebpf"
        info = {
            "format": wire.FORMAT,
            "mode": self._client.get("mode", "sample"),
            "source": source,
            "loader": "bcc" if source == "ebpf" else None,
            "clock": {"name": "CLOCK_MONOTONIC", "source": "monotonic", "hz": 1e9, "error_ns": 0},
            "clock_snapshot": self._dictionary("clock_snapshot"),
            "hz": {"asked": self.hz, "reached": self._hz_reached()},
            "start_ns": start_ns,
            "end_ns": end_ns,
            "wall_ns": None if start_ns is None or end_ns is None else end_ns - start_ns,
            "lost": sum(lost.values()),
            "lost_by_cause": lost,
            "counters": self.counters,
            "versions": self._versions(),
            "thread_names": self._dictionary("thread_names"),
            "cell": self._client.get("cell"),
            "notes": self._notes(),
            "error": self._error(),
        }
        for name in ("client_pid", "client_start_time", "target_pid"):
            info[name] = self._client.get(name, self._start.get(name))
        return info

    def _first(self, role: str, event: str | None) -> dict[str, Any]:
        for meta in self._metas:
            if meta.get("role") == role and event in {None, meta.get("event")}:
                return meta
        return {}

    def _integer(self, name: str, default: int | None) -> int | None:
        for meta in (self._end, self._start):
            if _is_int(meta.get(name)):
                return int(meta[name])
        return default

    def _dictionary(self, name: str) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for meta in self._metas:
            if isinstance(meta.get(name), dict):
                merged |= meta[name]
        return merged

    def _versions(self) -> dict[str, Any]:
        versions = self._dictionary("versions")
        for meta in self._metas:
            if isinstance(meta.get("target_python"), str):
                versions["target_python"] = meta["target_python"]
        return versions

    def _notes(self) -> list[str]:
        notes: list[str] = []
        for meta in self._metas:
            told = meta.get("notes")
            texts = [meta.get("text"), *(told if isinstance(told, list) else [])]
            notes += [x for x in texts if isinstance(x, str) and x not in notes]
        if self.counters["map_full"]:
            notes.append("the map of code objects was full: newer functions have no name")
        return notes

    def _error(self) -> str | None:
        reason, message = self._end.get("reason"), self._end.get("message")
        if reason == "target-exited" and self._client.get("whole_program") is True:
            return None  # its end is what the recording was to reach
        if isinstance(message, str):
            return message
        if isinstance(reason, str) and reason not in _NO_ERROR:
            return reason
        error = self._end.get("error")
        return error if isinstance(error, str) else None

    def _hz_reached(self) -> float | None:
        """Divide samples by CPU seconds of the target: an idle CPU has no timer."""
        cpu_ns = self._integer("cpu_ns", None)
        hits = self._integer("hits", self.counters["hits"])
        if not cpu_ns or hits is None or hits < _FEWEST_HITS:
            return None
        return hits * 1e9 / cpu_ns


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _read_metas(records: Records) -> list[dict[str, Any]]:
    found = records.of(wire.RecordType.META, wire.HEADER)
    metas = []
    for n in range(len(found.starts)):
        try:
            meta = json.loads(records.tail(found, n), parse_constant=_refuse)
        except (ValueError, RecursionError):
            records.problems.append("a META record is damaged and was left out")
            continue
        if isinstance(meta, dict):
            metas.append(meta)
    return metas


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _read_stats(records: Records) -> tuple[int | None, dict[str, int]]:
    stats = records.of(wire.RecordType.STATS, wire.STATS).heads
    names = [x.name.lower() for x in Counter]
    if not len(stats):
        return None, dict.fromkeys(names, 0)
    newest = stats[int(stats["ts_ns"].argmax())]
    counters = newest["counters"].tolist()
    return int(newest["ts_ns"]), dict(zip(names, counters, strict=False))
