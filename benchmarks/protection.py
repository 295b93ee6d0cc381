"""What protections leave of a network's faults, and what they cost in time.

The same faults, single bit flips uniform over all bits of the outputs of layers (or of all
weights), strike a LeNet on sklearn's digits without and with each protection.  Bounds and
checksums are of the network as trained; bounds come from other images than those that are struck.
"""

from __future__ import annotations

import argparse
import json

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import faults_networks
import torch

from pystack_nb import faults
from pystack_nb.faults.protection import compare


if TYPE_CHECKING:
    import pandas as pd

RESULTS = Path(__file__).parent / "results"
TRAINED_ON = 1297  # images for the bounds; the other 500 are struck


def measure(kind: str, count: int, batch_size: int) -> pd.DataFrame:
    """Compare the protections on faults of one kind."""
    model, images, labels = faults_networks.lenet()
    data = images[TRAINED_ON:], labels[TRAINED_ON:]
    ranger = faults.Ranger.profile(model, images[:TRAINED_ON])
    campaign = faults.Campaign(model, data, faults.BitFlip(), kind, seed=0, faults=count)
    return compare(
        model,
        data,
        campaign.plan(),
        {
            "Ranger": ranger,
            "NanDetector": faults.NanDetector(),
            "Ranger, NanDetector on logits": [ranger, faults.NanDetector(layers=["9"])],
            "Checksum": faults.Checksum(),
            "Checksum, corrects": faults.Checksum(action="correct"),
            "Duplicate": faults.Duplicate(),
            "Duplicate, corrects": faults.Duplicate(action="correct"),
        },
        batch_size=batch_size,
    )


def main() -> None:
    """Print and keep a table for neurons and one for weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=4000, help="in each table")
    parser.add_argument("--batch-size", type=int, nargs="*", default=[1, 64], help="when timing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = {}
    for kind in ("neurons", "weights"):
        for size in options.batch_size:
            count = options.faults if size == options.batch_size[0] else 200
            table = measure(kind, count, size)
            kept[f"{kind}, {size} in a batch"] = table.to_dict("records")
            print(f"\n{count} faults in {kind}; times of forwards of {size}")
            print(table.round(4).to_string(index=False))
    path = RESULTS / f"protection-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(kept, indent=1))
    print(f"\n{path}")


if __name__ == "__main__":
    main()
