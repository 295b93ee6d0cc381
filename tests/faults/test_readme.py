"""What the README shows of faults, run as it stands there."""

from __future__ import annotations

import re

from pathlib import Path

import torch

from torch import nn


README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


class Small(nn.Module):
    """A network with a second convolution, as the README's has."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.conv2 = nn.Conv2d(4, 4, 3)
        self.fc = nn.Linear(16, 3)

    def forward(self, images):
        return self.fc(self.conv2(self.conv1(images).relu()).relu().flatten(1))


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch):
    # GIVEN a model and its data
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {
        "model": Small().eval(),
        "images": torch.rand(8, 1, 6, 6),
        "labels": torch.randint(3, (8,)),
    }
    (example,) = [x for x in BLOCK.findall(README.read_text()) if "faults.Campaign(" in x]
    # WHEN the block is run
    exec(example, names)
    # THEN the fault was there, and the campaign is in the folder that is named
    assert names["log"].to_frame()["bit"].tolist() == [30]
    assert (tmp_path / "campaign").is_dir()
    assert set(names["campaign"].summary()["layer"]) == {"conv1", "conv2", "fc"}
