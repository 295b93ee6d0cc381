from __future__ import annotations

import subprocess

import probing
import pytest

from probed_programs import Probed
from probing import MINORS


@pytest.fixture(params=MINORS, ids=lambda minor: f"3.{minor}")
def probed(request, tmp_path):
    """Run programs that record themselves with the probe, and give what they kept."""
    return Probed(request.param, tmp_path)


@pytest.fixture
def greenlets(probed, leave):
    """The folder of the package greenlet for the interpreter at hand."""
    try:
        return probing.greenlets(probed.minor)
    except subprocess.CalledProcessError as error:
        leave(f"pip has no greenlet for CPython 3.{probed.minor}: {error.stderr}")
