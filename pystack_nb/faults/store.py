"""A campaign's results on disk: a folder that a killed process can leave at any moment.

``campaign.json`` says whose results they are.  Each finished batch is one Parquet file, written
under another name, flushed and renamed: a part is there wholly or not at all.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid

from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from pystack_nb.errors import CampaignError


if TYPE_CHECKING:
    from collections.abc import Iterator

HEAD = "campaign.json"
LOCK = "campaign.lock"
_UNFINISHED = ".unfinished"
_RECORDING = {"info.json", "samples.parquet"}  # what pystack_nb.load reads has both


class Store:
    """The folder of one campaign.

    Parameters
    ----------
    path : str or path-like
        The folder; it is made when results come.
    fingerprint : dict
        JSON values that say which campaign this is.
    """

    def __init__(self, path: str | os.PathLike[str], fingerprint: dict[str, Any]) -> None:
        try:
            self.path = Path(path)
        except TypeError:
            raise CampaignError(f"path={path!r:.60} is no folder; pass its name") from None
        self.fingerprint: dict[str, Any] = json.loads(json.dumps(fingerprint))

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the folder for this process alone, and see to it that it is this campaign's.

        Raises
        ------
        CampaignError
            It holds other files or another campaign, or another process is writing to it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise CampaignError(
                f"no results can be kept in {self.path} ({error.strerror}); choose another folder"
            ) from None
        try:
            # The kernel lets go of this lock when the process ends, however it ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.check()
            if not (self.path / HEAD).exists():
                _write(self.path / HEAD, json.dumps(self.fingerprint, indent=2).encode())
            for left in self.path.glob(f"*{_UNFINISHED}"):
                left.unlink()
            yield
        except BlockingIOError:
            raise CampaignError(
                f"another process is running the campaign in {self.path}; wait for it or choose"
                " another folder"
            ) from None
        finally:
            os.close(lock)

    def check(self) -> None:
        """Raise a CampaignError that names what differs if the folder is not this campaign's."""
        head = self.path / HEAD
        if self.path.exists() and not self.path.is_dir():
            raise CampaignError(f"{self.path} is no folder; choose another folder")
        if not head.exists():
            strange = sorted(x.name for x in self.path.iterdir()) if self.path.exists() else []
            strange = [x for x in strange if x != LOCK and not x.endswith(_UNFINISHED)]
            if strange:
                if {*strange} >= _RECORDING:
                    raise CampaignError(
                        f"{self.path} holds a recording of the profiler and no campaign; read it"
                        " with pystack_nb.load, and choose an empty folder for a campaign"
                    )
                raise CampaignError(
                    f"{self.path} holds {strange[0]!r} and no campaign; choose an empty folder"
                )
            return
        try:
            there = json.loads(head.read_text())
        except (OSError, ValueError):
            raise CampaignError(f"{head} can't be read; choose another folder") from None
        mine, theirs = _flat(self.fingerprint), _flat(there)
        if differing := sorted(x for x in {*mine, *theirs} if mine.get(x) != theirs.get(x)):
            told = "; ".join(
                f"{x}: {_short(theirs.get(x))} there, {_short(mine.get(x))} here"
                for x in differing[:4]
            )
            more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
            raise CampaignError(
                f"{self.path} holds the results of another campaign ({told}{more}); choose"
                " another folder, or make the campaign the same"
            )

    def append(self, results: pd.DataFrame) -> None:
        """Add a finished batch."""
        first = int(results["fault"].iloc[0])
        name = f"part-{first:09d}-{uuid.uuid4().hex[:8]}.parquet"
        _write(self.path / name, results.to_parquet(index=False))

    def read(self) -> pd.DataFrame:
        """Give the finished faults, in the order of their numbers, each once."""
        parts = []
        for part in sorted(self.path.glob("part-*.parquet")):
            try:
                parts.append(pd.read_parquet(part))
            except (OSError, ValueError):
                raise CampaignError(
                    f"{part} can't be read; delete it, and its faults are run again"
                ) from None
        if not parts:
            return pd.DataFrame()
        table = pd.concat(parts, ignore_index=True)
        return table.drop_duplicates("fault").sort_values("fault", ignore_index=True)


def _write(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}{_UNFINISHED}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink()
        raise CampaignError(
            f"{path} can't be written ({error.strerror}); make room or choose another folder"
        ) from None


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    found: dict[str, Any] = {}
    for key, part in value.items():
        found |= _flat(part, f"{name}.{key}" if name else str(key))
    return found


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
