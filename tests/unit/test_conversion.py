"""The modules that are programs: what they convert, and how they tell of mistakes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import spools

from pystack_nb import convert_to_json, convert_to_perfetto, core, load
from pystack_nb.core import PyStackProfiler


SPOOL = spools.spool(spools.client(), spools.sample(5), spools.end(reason="stopped"))
MODULES = [convert_to_json, convert_to_perfetto, core]
OUTPUTS = {convert_to_json: "x.json", convert_to_perfetto: "x.pftrace", core: "x.json"}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_converts_a_file(module, tmp_path, capsys):
    source, out = tmp_path / "in", tmp_path / OUTPUTS[module]
    if module is core:
        source.write_bytes(SPOOL)
    else:
        PyStackProfiler.parse_stack_data(SPOOL).save(source)
    assert module.main([str(source), str(out)]) == 0
    assert out.stat().st_size > 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("module", MODULES)
def test_what_is_no_recording_is_one_line_and_status_1(module, tmp_path, capsys):
    out = tmp_path / OUTPUTS[module]
    (tmp_path / "rubbish.json").write_text("rubbish")
    for source in (tmp_path / "nowhere", tmp_path / "rubbish.json"):
        assert module.main([str(source), str(out)]) == 1
        told = capsys.readouterr().err
        assert told.count("\n") == 1
        assert "; give" in told
    assert not out.exists()


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("arguments", [[], ["in"], ["in", "out", "more"]])
def test_a_mistake_in_the_arguments_is_status_2(module, arguments, capsys):
    assert module.main(arguments) == 2
    assert capsys.readouterr().err == f"usage: python -m {module.__name__} IN OUT\n"


def test_a_spool_file_is_converted_by_the_profilers_module(tmp_path):
    source = tmp_path / "left.pst"
    source.write_bytes(SPOOL)
    for name in ("out.json", "folder"):
        command = [sys.executable, "-m", "pystack_nb.core", source, tmp_path / name]
        done = subprocess.run(command, check=True, capture_output=True)
        assert (done.stdout, done.stderr) == (b"", b"")
        assert load(tmp_path / name).samples["ts_ns"].tolist() == [5]


def test_a_generator_of_traces_is_converted_as_its_list():
    traces = PyStackProfiler.parse_stack_data(SPOOL).to_traces()
    for convert in (convert_to_json.convert_to_json, convert_to_perfetto.convert_to_perfetto):
        assert convert(x for x in traces) == convert(traces)
    document = json.loads(convert_to_json.convert_to_json(iter(traces)))
    assert document["samples"]["ts_ns"] == [5]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (convert_to_json, "out.pftrace"),
        (convert_to_json, "folder"),
        (convert_to_json, "v3.12.1"),
        (convert_to_perfetto, "out.json"),
        (convert_to_perfetto, "folder"),
    ],
)
def test_a_module_of_one_format_writes_no_other_suffix(module, name, tmp_path, capsys):
    PyStackProfiler.parse_stack_data(SPOOL).save(tmp_path / "in")
    out = tmp_path / name
    assert module.main([str(tmp_path / "in"), str(out)]) == 1
    assert "; end the path in " in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("name", ["x.pftrace", "x.perfetto-trace"])
def test_a_perfetto_trace_is_no_input_and_is_called_one(name, tmp_path, capsys):
    source = tmp_path / name
    PyStackProfiler.parse_stack_data(SPOOL).to_perfetto(source)
    assert convert_to_json.main([str(source), str(tmp_path / "x.json")]) == 1
    told = capsys.readouterr().err
    assert "Perfetto trace, which can't be read back" in told
    assert told.count("\n") == 1
