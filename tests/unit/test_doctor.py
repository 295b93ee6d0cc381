"""The doctor: what counts is what was tried, and each lack has its remedy."""

from __future__ import annotations

import gzip
import subprocess
import sys

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pystack_nb import doctor
from pystack_nb.errors import (
    BccMissingError,
    BpfNotPermittedError,
    CollectorError,
    CollectorUnavailableError,
    ProbeError,
    PystackError,
)


if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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


def test_tracefs_is_looked_for_and_never_a_lack() -> None:
    (finding,) = doctor.examine_tracefs()
    assert (finding.subject, finding.state) == ("tracefs", "has")
    assert "mode sample" not in finding.text


def test_what_is_not_there_cannot_be_told_without_a_remedy() -> None:
    for state in ("lacks", "hint"):
        with pytest.raises(ValueError, match="takes a remedy"):
            doctor.Finding(state, "rights", "none")


@pytest.mark.parametrize("service", [False, True])
@pytest.mark.parametrize("uid", [0, 1000])
def test_rights_that_do_not_suffice_are_a_lack(
    uid: int, service: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # GIVEN a user without capabilities and without sudo
    monkeypatch.setattr(doctor.os, "geteuid", lambda: uid)
    monkeypatch.setattr(doctor, "_capabilities", list)
    monkeypatch.setattr(doctor.shutil, "which", lambda _: None)
    monkeypatch.delenv("PYSTACK_NB_SOCKET", raising=False)
    monkeypatch.setattr(doctor, "SERVICE_SOCKET", tmp_path)
    if not service:
        monkeypatch.setattr(doctor, "SERVICE_SOCKET", tmp_path / "none")
    # THEN only a service makes up for that, which root would have to name
    (finding,) = doctor.examine_rights()
    assert finding.state == ("has" if service and uid else "lacks")
    if uid == 0:
        monkeypatch.setenv("PYSTACK_NB_SOCKET", str(tmp_path))
        assert states(doctor.examine_rights) == {"rights": "has"}


ERRORS = {
    BccMissingError: "apt-get install python3-bpfcc",
    BpfNotPermittedError: "--cap-add",
    CollectorUnavailableError: "collector install",
    CollectorError: "report it",
}


@pytest.mark.parametrize("kind", ERRORS)
def test_each_way_to_have_no_collector_has_its_remedy(
    kind: type[PystackError], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise kind("it is not there.")

    monkeypatch.setattr(doctor, "connect", refuse)
    (finding,) = doctor.examine_collector()
    assert finding.state == "lacks"
    assert ERRORS[kind] in finding.remedy


def test_a_machine_that_shows_nothing_gets_a_remedy_for_each_lack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse() -> None:
        raise ProbeError("it was not built.")

    monkeypatch.setattr("pystack_nb.probe.load", refuse)
    monkeypatch.setattr("pystack_nb.collector.locate.LIBRARY", "no.so")
    monkeypatch.setattr(doctor, "_kernel_config", lambda: None)
    monkeypatch.setattr(doctor, "_BTF", tmp_path / "btf")
    monkeypatch.setattr(doctor, "_SYSCTL", tmp_path)
    monkeypatch.setattr(doctor, "_PYTHON", "/nowhere/python3")
    found = [
        finding
        for examine in doctor.EXAMINATIONS
        if examine is not doctor.examine_collector
        for finding in examine()
    ]
    missing = {finding.subject for finding in found if finding.state != "has"}
    assert {"kernel config", "BTF", "bcc", "probe", "perf_event_paranoid"} <= missing
    assert all(finding.remedy for finding in found if finding.state != "has")


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
    assert done.stdout.count("to mend it: unset PYSTACK_NB_SOCKET") == 2
    assert not [x for x in done.stdout.split("to mend it: ")[1:] if "install" in x.split("\n")[0]]
    assert "kernel: Linux" in done.stdout
    assert "can not run" in done.stdout
    assert done.stderr == ""
