"""Fault injection beside PyTorchFI 0.6.0: faults per second, and memory.

Both inject into the same networks, taking turns.  PyTorchFI declares a fault, which copies the
model, runs it and resets; `Engine.evaluate` is given a table of faults and gives outcomes.
PyTorchFI's list of spent hooks is emptied after each fault: it grows, and slows a long run down.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import statistics
import sys
import time
import warnings

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import faults_memory
import faults_networks
import numpy as np
import pandas as pd
import torch

from pystack_nb import faults
from pystack_nb.faults.engine import Engine, EngineData


if TYPE_CHECKING:
    from collections.abc import Callable

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from pytorchfi import core, neuron_error_models, weight_error_models

RESULTS = Path(__file__).parent / "results"
NETWORKS = ("LeNet", "ResNet-20")
# Rows of the table, and by how much each is to be faster on these networks.
GOALS = {
    "neuron faults, one at a time": (50, 30),
    "neuron faults, 64 in a batch": (2.5, 2.5),
    "weight faults, one image": (10, 4),
    "weight faults, 64 images": (2.5, 1.5),
}
CAMPAIGN_SECONDS = 2
MEMORY_RATIO = 2


def table_of(model: torch.nn.Module, images: torch.Tensor, kind: str, count: int) -> pd.DataFrame:
    """Draw single bit flips.

    Those of weights are uniform over all of them; those of neurons choose a layer first, then
    an element, as PyTorchFI does, which decides how much of the network a fault runs through.
    """
    rng = np.random.default_rng(0)
    sites = faults.sites(model, images[:1])
    sites = sites[(sites["kind"] == kind) & (sites["same_as"] == "") & (sites["bits"] == 32)]
    if kind == "neuron":
        sites = sites[(sites["role"] == "output") & sites["type"].isin(["Conv2d", "Linear"])]
    share = sites["elements"].to_numpy(float) if kind == "weight" else np.ones(len(sites))
    rows = sites.iloc[rng.choice(len(sites), count, p=share / share.sum())]
    bit = rng.integers(0, 32, count)
    return pd.DataFrame(
        {
            "fault": np.arange(count),
            **{name: rows[name].to_numpy() for name in ("layer", "call", "role", "kind")},
            "element": rng.integers(0, rows["elements"].to_numpy()),
            "sample": rng.integers(0, len(images), count),
            "and_mask": ~np.zeros(count, np.uint64),
            "or_mask": np.zeros(count, np.uint64),
            "xor_mask": np.uint64(1) << bit.astype(np.uint64),
        }
    )


class Contest:
    """The two tools on one network.

    Parameters
    ----------
    name : str
        ``"LeNet"`` or ``"ResNet-20"``.
    quick : bool
        Whether only to see that everything works.
    """

    def __init__(self, name: str, quick: bool) -> None:
        make = faults_networks.lenet if name == "LeNet" else faults_networks.resnet
        self.model, images, _ = make()
        self.images = images[:64]
        self.quick = quick
        self.scale = (1.0 if name == "LeNet" else 0.1) * (0.1 if quick else 1.0)

    def ours(self, row: str) -> Callable[[], float]:
        """Give a function that runs faults and says how many in a second."""
        neurons, one = row.startswith("neuron"), "one" in row and not row.startswith("neuron")
        images = self.images[:1] if one else self.images
        # As many neuron faults as a campaign has: the golden run is a part of its price.
        count = int(self.scale * (2000 if one else 400))
        if neurons:
            count = 960 if self.quick else 9604
        table = table_of(self.model, images, "neuron" if neurons else "weight", count)
        several = 64 if row.endswith("images") else None
        engine = Engine(self.model, EngineData([images]), weight_samples=several)
        engine.evaluate(table[:100])

        def run() -> float:
            started = time.perf_counter()
            engine.evaluate(table)
            return count / (time.perf_counter() - started)

        return run

    def theirs(self, row: str) -> Callable[[], float]:
        """Do the same for PyTorchFI."""
        batch = 64 if "64" in row else 1
        shape = list(self.images.shape[1:])
        kinds = [torch.nn.Conv2d, torch.nn.Linear]
        injector = core.fault_injection(
            self.model, batch, input_shape=shape, layer_types=kinds, use_cuda=False
        )
        images = self.images[:batch]
        if row.startswith("weight"):
            declare: Callable[..., Any] = weight_error_models.random_weight_inj
        else:
            declare = neuron_error_models.random_neuron_inj
            if batch > 1:
                declare = neuron_error_models.random_neuron_inj_batched
        count = max(5, int(self.scale * (1000 if batch == 1 else 200)))
        each = batch if row.startswith("neuron") else 1

        def run() -> float:
            random.seed(0)
            started = time.perf_counter()
            with torch.no_grad():
                for _ in range(count):
                    declare(injector)(images).argmax(1)
                    injector.fi_reset()
                    # It keeps the hooks that it removed, and looks through all of them at each
                    # reset: its rate would depend on how long it has been measured.
                    injector.handles.clear()
            return count * each / (time.perf_counter() - started)

        return run

    def rows(self, rounds: int) -> dict[str, dict[str, list[float]]]:
        """Measure each row of the table, the contestants by turns."""
        found = {}
        for row in GOALS:
            ours, theirs = self.ours(row), self.theirs(row)
            rates: dict[str, list[float]] = {"pystack_nb": [], "PyTorchFI": []}
            for number in range(rounds):
                turn = [("pystack_nb", ours), ("PyTorchFI", theirs)]
                for name, run in turn if number % 2 else turn[::-1]:
                    rates[name].append(run())
            found[row] = rates
        return found

    def campaign(self) -> dict[str, float]:
        """Run a campaign of 9,604 neuron faults from nothing: planned, timed, injected."""
        started = time.perf_counter()
        campaign = faults.Campaign(self.model, self.images, sites="neurons", seed=0, faults=9604)
        with contextlib.redirect_stdout(io.StringIO()):
            campaign.run(progress=False)
        taken = time.perf_counter() - started
        return {"seconds": taken, "SDC": campaign.total("SDC").rate}


def markdown(results: dict[str, Any]) -> str:
    """Make the table of the README."""
    lines = [
        "| | network | pystack_nb, per s | PyTorchFI 0.6.0, per s | ratio | goal |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row, goals in GOALS.items():
        for name, found in results["contests"].items():
            rates, goal = found[row], goals[NETWORKS.index(name)]
            ours, theirs = (statistics.median(rates[x]) for x in ("pystack_nb", "PyTorchFI"))
            ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
            lines.append(
                f"| {row} | {name} | {ours:,.0f} | {theirs:,.0f}"
                f" | {statistics.median(ratios):.1f} | {goal} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the numbers down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="do the programs work at all?")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=NETWORKS, choices=NETWORKS)
    options = parser.parse_args()
    contests = {name: Contest(name, options.quick) for name in options.only}
    rounds = 1 if options.quick else options.rounds
    results: dict[str, Any] = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "contests": {name: contest.rows(rounds) for name, contest in contests.items()},
        "campaign": {name: c.campaign() for name, c in contests.items() if name == "LeNet"},
        "memory": faults_memory.measure(),
    }
    print(markdown(results))
    for name, campaign in results["campaign"].items():
        print(
            f"\nA campaign of 9,604 neuron faults in {name}, from nothing:"
            f" {campaign['seconds']:.2f} s (goal: {CAMPAIGN_SECONDS}),"
            f" {100 * campaign['SDC']:.2f} % SDC"
        )
    memory = results["memory"]
    print(
        f"\nMiB in ResNet-20: the model {memory['model']:.1f}, a forward of {memory['batch']}"
        f" {memory['forward']:.1f}, faults in such batches {memory['faults']:.1f}: with the model"
        f" {memory['ratio']:.1f} times as much (goal: {MEMORY_RATIO})"
    )
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        path = RESULTS / f"faults-{stamp}.json"
        path.write_text(json.dumps(results, indent=1))
        print(f"\nwritten to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
