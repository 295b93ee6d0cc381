from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile

from itertools import chain
from pathlib import Path

import pytest
import yaml

import pystack_nb


ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_FOR_IMPORT = ("IPython", "matplotlib", "numpy", "pandas", "perfetto", "pyarrow")


def conda_and_pip() -> tuple[list[str], list[str]]:
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = [entry for entry in dependencies if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    return conda, pip


def test_environment_yml_asks_for_what_pyproject_asks_for():
    conda, pip = conda_and_pip()
    of_conda_itself = {entry for entry in conda if re.match(r"(python|pip)\b", entry)}
    editable = {entry for entry in pip if entry.startswith("--editable")}

    assert {*conda, *pip} - of_conda_itself - editable == set(PROJECT["dependencies"])


def test_environment_yml_installs_the_project_with_extras_that_exist():
    (editable,) = [entry for entry in conda_and_pip()[1] if entry.startswith("--editable")]

    extras = re.fullmatch(r"--editable \.\[(.*)\]", editable).group(1).split(",")

    assert set(extras) == set(PROJECT["optional-dependencies"]) - {"torch"}


def test_environment_yml_and_pyproject_want_the_same_oldest_python():
    (python,) = [entry for entry in conda_and_pip()[0] if entry.startswith("python>=")]

    assert python.split(",")[0] == "python" + PROJECT["requires-python"]


def test_torch_comes_with_its_extra_and_the_tests_alone():
    for name, extra in PROJECT["optional-dependencies"].items():
        pulls_torch = any(re.match(r"torch\b", requirement) for requirement in extra)
        assert pulls_torch == (name in {"torch", "test"}), name
    assert not any(re.match(r"torch\b", entry) for entry in PROJECT["dependencies"])


def test_the_tests_have_what_the_torch_extra_asks_for():
    extras = PROJECT["optional-dependencies"]
    wanted, there = (
        {re.match(r"[\w-]+", entry).group() for entry in extras[name]} for name in ("torch", "test")
    )
    assert wanted <= there


def test_torch_is_asked_for_as_new_as_the_sources_need_it_and_tested_at_no_older_one():
    came_with = {r"torch\.accelerator\b": (2, 6), r"torch\.backends\.mha\.get_fastpath": (2, 3)}
    sources = "".join(path.read_text() for path in (ROOT / "pystack_nb").rglob("*.py"))
    used = [version for name, version in came_with.items() if re.search(name, sources)]
    asked, tested = (
        next(entry for entry in PROJECT["optional-dependencies"][name] if entry.startswith(start))
        for name, start in (("torch", "torch>="), ("test", "torch=="))
    )
    floor, pinned = (tuple(map(int, re.findall(r"\d+", x)[:2])) for x in (asked, tested))

    assert max(used) == floor <= pinned


def test_bcc_is_never_asked_of_pypi_where_the_name_is_another_project():
    everything = chain(PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())

    assert not any(re.match(r"bcc\b", requirement) for requirement in everything)


def test_no_command_takes_the_name_of_the_other_project_called_pystack():
    assert "pystack" not in PROJECT["scripts"]


@pytest.mark.parametrize("command", PROJECT["scripts"].values())
def test_each_command_has_a_function_behind_it(command):
    module, function = command.split(":")

    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("name", pystack_nb.__all__)
def test_public_name_exists(name):
    assert getattr(pystack_nb, name) is not None
    assert name in dir(pystack_nb)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing_of_the_kind'"):
        _ = pystack_nb.nothing_of_the_kind


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, pystack_nb; print(*sys.modules.keys() & set({NOT_FOR_IMPORT}))"

    printed = subprocess.check_output([sys.executable, "-c", code], text=True)

    assert printed.split() == []


def test_privileged_side_imports_only_the_standard_library_bcc_and_itself():
    folder = ROOT / "pystack_nb" / "collector"
    allowed = {*sys.stdlib_module_names, "bcc"}
    seen, waiting = set(), {"server"}

    # The client's modules lie in the same folder; what counts is what the server leads to.
    while waiting:
        name = waiting.pop()
        seen.add(name)
        for imported, level, names in imports_of(folder / f"{name}.py"):
            if level == 0:
                assert imported.split(".")[0] in allowed, f"{name}.py imports {imported}"
            else:
                assert level == 1, f"{name}.py imports from outside the collector's folder"
                reached = {imported} if imported else names
                waiting |= {each for each in reached if (folder / f"{each}.py").is_file()} - seen

    assert {"server", "session", "loader", "drain", "target", "access"} <= seen


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0, set()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level, {alias.name for alias in node.names}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder]
    subprocess.run([*build, f"-Cbuild-dir={folder / 'build'}", ROOT], check=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel_names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def below(folder, pattern):
    return {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob(pattern)}


def test_wheel_holds_each_module_of_the_package(wheel_names):
    assert below("pystack_nb", "*.py") <= wheel_names
    assert "pystack_nb/py.typed" in wheel_names


def test_wheel_holds_what_the_collector_compiles_and_loads(wheel_names):
    sources = {*below("bpf", "*.bpf.c"), *below("bpf", "*.h")}
    sources = {name for name in sources if ".output" not in name}

    assert "bpf/pystack_time.bpf.c" in sources
    assert "bpf/include/linux/kconfig.h" in sources
    assert {f"pystack_nb/{name}" for name in sources} <= wheel_names
    assert "pystack_nb/bpf/libpystack_time.so" in wheel_names


def test_wheel_holds_nothing_else(wheel_names):
    outside = {
        name for name in wheel_names if not re.match(r"pystack_nb(-[^/]+\.dist-info)?/", name)
    }
    assert outside == set()
    assert not any(
        re.search(r"(^|/)tests?(/|_)|__pycache__|\.output", name) for name in wheel_names
    )


def test_wheel_is_for_the_python_that_its_probe_knows_and_one_platform(wheel):
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"

    assert re.search(rf"-{python}-{python}-linux_\w+\.whl$", wheel.name)


def test_wheel_holds_the_compiled_modules_and_not_their_sources(wheel_names):
    suffix = sysconfig.get_config_var("EXT_SUFFIX")

    assert "pystack_nb/_pairing.abi3.so" in wheel_names
    assert f"pystack_nb/probe/_probe{suffix}" in wheel_names
    assert {x for x in wheel_names if re.search(r"\.[ch]$", x)} <= {
        f"pystack_nb/{x}" for x in (*below("bpf", "*.c"), *below("bpf", "*.h"))
    }


def test_wheel_carries_both_licences(wheel_names):
    licences = {name.split("/", 2)[-1] for name in wheel_names if "/licenses/" in name}

    assert licences == {"LICENSE", "bpf/LICENSE"}


def test_library_of_the_wheel_loads(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        path = archive.extract("pystack_nb/bpf/libpystack_time.so", tmp_path)

    subprocess.run([sys.executable, "-c", f"import ctypes; ctypes.CDLL({path!r})"], check=True)
