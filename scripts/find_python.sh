#!/bin/bash
# Prints the path of the Python that .venv is made from: $PYTHON if set, else the first one of
# the user's that can profile itself (3.11 to 3.13) and can make a virtual environment.
set -euo pipefail

probe='import sys, venv, ensurepip
assert (3, 11) <= sys.version_info[:2] <= (3, 13)
print(sys.executable)'

candidates=("${PYTHON:-python3}")
if [[ -z ${PYTHON:-} ]]; then
	candidates+=(python3.13 python3.12 python3.11 /usr/bin/python3)
	for version in 3.13 3.12 3.11; do
		candidates+=("${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python3)
	done
fi
for candidate in "${candidates[@]}"; do
	if found=$("$candidate" -I -c "$probe" 2>/dev/null); then
		echo "$found"
		exit 0
	fi
done
echo "No CPython 3.11, 3.12 or 3.13 with venv among: ${candidates[*]}." >&2
echo "Install one (Debian: apt-get install python3 python3-venv), or name it: make PYTHON=PATH." >&2
exit 1
