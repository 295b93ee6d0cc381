#!/bin/bash
# Makes this checkout ready: the distribution's packages, .venv, the C parts. Each step looks
# first whether there is anything to do, so that the second run takes no time.
set -euo pipefail
cd "$(dirname "$0")/.."

mkdir -p build
exec 9>build/setup.lock
flock 9 # two makes at once must not install into one .venv

say() { echo "setup: $*" >&2; }

install_packages() {
	local wanted optional missing
	mapfile -t wanted < <(sed -n 's/^\([a-z0-9][^ ?]*\) .*/\1/p' scripts/packages)
	mapfile -t optional < <(sed -n 's/^\([a-z0-9][^ ?]*\)? .*/\1/p' scripts/packages)
	if ! command -v apt-get dpkg-query >/dev/null; then
		check_other_distribution "${wanted[@]}" "${optional[@]}"
		return
	fi
	mapfile -t missing < <(not_installed "${wanted[@]}")
	((${#missing[@]} == 0)) || apt_install update "${missing[@]}"
	mapfile -t missing < <(not_installed "${optional[@]}")
	for package in "${missing[@]}"; do
		if runs "$package"; then
			continue
		elif [[ -n $(apt-cache show --no-all-versions "$package" 2>/dev/null) ]]; then
			apt_install "" "$package"
		else
			say "there is no package $package here; only tests need it (see scripts/packages)."
		fi
	done
}

not_installed() {
	for package in "$@"; do
		if [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) != installed ]]; then
			echo "$package"
		fi
	done
}

runs() {
	PATH=$PATH:/usr/sbin:/sbin "$1" version >/dev/null 2>&1
}

apt_install() {
	local update=$1
	local -a as_root=()
	shift
	if ((EUID)); then
		if ! command -v sudo >/dev/null; then
			say "missing packages, and neither root nor sudo to install them with."
			say "Run as root: apt-get install $*"
			exit 1
		fi
		as_root=(sudo)
	fi
	say "installing $*"
	[[ -z $update ]] || "${as_root[@]}" apt-get -qq -o DPkg::Lock::Timeout=300 update
	"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends \
		-o DPkg::Lock::Timeout=300 install "$@" >build/apt.log 2>&1 ||
		{
			cat build/apt.log >&2
			say "apt-get failed; mend what it says above, then run make again."
			exit 1
		}
}

# Elsewhere nothing is installed for the user, but nothing is asked for that is there.
check_other_distribution() {
	local lacking=()
	for program in clang bpftool gcc pkg-config cmake ninja; do
		PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || lacking+=("$program")
	done
	/usr/bin/python3 -I -c 'import bcc' 2>/dev/null || lacking+=("bcc for /usr/bin/python3")
	pkg-config --exists libbpf 2>/dev/null || lacking+=("libbpf with its headers")
	((${#lacking[@]})) || return 0
	say "this is not Debian or Ubuntu, so nothing is installed for you. Missing:"
	printf 'setup:   %s\n' "${lacking[@]}" >&2
	say "Install your distribution's counterparts of these Debian packages, then run make again:"
	say "  $*"
	say "  (Fedora: python3-bcc libbpf-devel clang bpftool gcc pkgconf cmake ninja-build)"
	exit 1
}

make_venv() {
	local stamp=.venv/.pystack_nb-setup state
	# A checkout that was moved needs a new .venv: scripts inside name their interpreter.
	state=$(
		pwd
		sha256sum pyproject.toml CMakeLists.txt scripts/setup.sh
	)
	if [[ -f $stamp && $(<"$stamp") == "$state" ]] && .venv/bin/python -I -c '' 2>/dev/null; then
		return 0
	fi
	if ! { .venv/bin/python -I -c '' && head -1 .venv/bin/pip | grep -qF "$PWD/.venv/"; } 2>/dev/null; then
		local python
		python=$(scripts/find_python.sh)
		say "making .venv with $python"
		"$python" -m venv --clear .venv
	fi
	say "installing the package and its tools into .venv"
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,bench]'
	echo "$state" >"$stamp"
}

install_packages
make_venv
make --no-print-directory -s -C bpf
make --no-print-directory -s -f native.mk PYTHON=.venv/bin/python
