"""The doctor: what counts is what was tried, and each lack has its remedy."""

from __future__ import annotations

import gzip
import subprocess
import sys

from pathlib import Path
from typing import TYPE_CHECKING

from pystack_nb import doctor


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pytest


def states(examine: Callable[[], Iterator[doctor.Finding]]) -> dict[str, str]:
    return {finding.subject: finding.state for finding in examine()}


def test_a_config_that_cannot_be_read_is_no_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_kernel_config", lambda: None)
    assert states(doctor.examine_config) == {"kernel config": "hint"}


def test_an_option_that_is_not_set_is_a_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "CONFIG_BPF_SYSCALL=y\nCONFIG_PERF_EVENTS=y\n# CONFIG_BPF_EVENTS is not set\n"
    monkeypatch.setattr(doctor, "_kernel_config", lambda: text)
    found = states(doctor.examine_config)
    assert found["CONFIG_BPF_SYSCALL"] == "has"
    assert found["CONFIG_BPF_EVENTS"] == "lacks"


def test_a_rate_limit_below_the_default_rate_is_a_lack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("max_sample_rate", "paranoid", "mlock_kb"):
        (tmp_path / f"perf_event_{name}").write_text("100\n")
    (tmp_path / "perf_cpu_time_max_percent").write_text("25\n")
    monkeypatch.setattr(doctor, "_SYSCTL", tmp_path)
    lacks = [x for x in doctor.examine_perf_limits() if x.state == "lacks"]
    assert [x.subject for x in lacks] == ["perf_event_max_sample_rate"]
    assert "sysctl" in lacks[0].remedy


def test_a_python_without_bcc_is_a_lack_that_apt_mends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_BCC", "import bcc_that_is_not_there")
    (finding,) = doctor.examine_bcc()
    assert finding.state == "lacks"
    assert "bcc_that_is_not_there" in finding.text
    assert "apt-get install python3-bpfcc" in str(finding)


def test_a_kernel_without_btf_is_a_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_BTF", Path("/nowhere/btf"))
    assert states(doctor.examine_btf) == {"BTF": "lacks"}


def test_a_packed_config_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    packed = tmp_path / "config.gz"
    packed.write_bytes(gzip.compress(b"CONFIG_BPF=y\n"))
    monkeypatch.setattr(doctor, "_config_files", lambda: [tmp_path / "missing", packed])
    assert doctor._kernel_config() == "CONFIG_BPF=y\n"


def test_this_interpreter_is_looked_at() -> None:
    (finding,) = doctor.examine_interpreter()
    assert finding.state == "has"
    assert "CPython {}.{}.{}".format(*sys.version_info) in finding.text


def test_the_status_is_1_when_no_collector_can_be_had(tmp_path: Path) -> None:
    # GIVEN a setting that leads nowhere
    nowhere = tmp_path / "no.sock"
    done = subprocess.run(
        [sys.executable, "-m", "pystack_nb.cli", "doctor"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYSTACK_NB_SOCKET": str(nowhere)},
    )
    # THEN everything else is still told, and the status says that nothing can run
    assert done.returncode == 1
    assert str(nowhere) in done.stdout
    assert "kernel: Linux" in done.stdout
    assert "can not run" in done.stdout
    assert done.stderr == ""
