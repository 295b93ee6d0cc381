"""How much memory faults take beside a plain forward of as large a batch: ResNet-20.

Each is measured in a process of its own, as the peak of its resident memory less what was
resident before it began: the interpreter, torch, the model and the samples.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

from pathlib import Path
from typing import TYPE_CHECKING

import faults_networks
import torch

from pystack_nb.faults.engine import Engine, EngineData


if TYPE_CHECKING:
    from collections.abc import Callable

# Otherwise memory that was given back stays resident, and hides what is taken next.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def measure(batch: int = 64) -> dict[str, float]:
    """Measure both, and give sizes in MiB.

    Returns
    -------
    dict of str to float
        ``model``; ``forward`` and ``faults``, what each took at most; and ``ratio``, that of
        model and faults to model and forward.
    """
    taken = {what: _in_process(what, batch) for what in ("forward", "faults")}
    net, _, _ = faults_networks.resnet(2)
    tensors = [*net.parameters(), *net.buffers()]
    model = sum(x.numel() * x.element_size() for x in tensors) / 2**20
    return {
        "batch": batch,
        "model": model,
        **taken,
        "ratio": (model + taken["faults"]) / (model + taken["forward"]),
    }


def _in_process(what: str, batch: int) -> float:
    done = subprocess.run(
        [sys.executable, __file__, what, str(batch)],
        env=os.environ | _MALLOC,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return float(json.loads(done.stdout))


def _resident(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.findall(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)[0]) / 1024


def _peak(run: Callable[[], object]) -> float:
    """Give by how many MiB the resident memory has grown at most."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is the present size again
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


def main() -> None:
    """Measure in this process."""
    import faults as benchmark  # noqa: PLC0415 - which imports this script

    what, batch = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    net, images, _ = faults_networks.resnet(64)
    table = benchmark.table_of(net, images, "neuron", 2000)
    engine = Engine(net, EngineData([images]), batch_size=batch)
    rows = images[torch.arange(batch) % len(images)]
    with torch.no_grad():
        # What is loaded and compiled at the first use belongs to torch.
        net(rows[:1])
        engine.evaluate(table[:1])
        print(_peak(lambda: net(rows) if what == "forward" else engine.evaluate(table)))


if __name__ == "__main__":
    main()
