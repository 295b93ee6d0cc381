"""Run the collector: ``/usr/bin/python3 -I -B .../collector/__main__.py``.

It is a package of its own there, made from this folder alone: the Python that it runs under
knows no pystack_nb, and nothing is added to its search path.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

from pathlib import Path


_PACKAGE = "pystack_collector"


def main() -> int:
    """Make the package and run its server; return the exit status."""
    folder = Path(__file__).resolve().parent
    spec = importlib.util.spec_from_file_location(
        _PACKAGE, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        sys.stderr.write(f"{folder} holds no collector: install pystack_nb again.\n")
        return 1
    package = importlib.util.module_from_spec(spec)
    sys.modules[_PACKAGE] = package
    spec.loader.exec_module(package)
    status: int = importlib.import_module(f"{_PACKAGE}.server").main(sys.argv[1:])
    return status


if __name__ == "__main__":
    sys.exit(main())
