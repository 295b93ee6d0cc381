# Everything that is done with a checkout. `make help` lists it.
SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
PY := .venv/bin/python
C_SOURCES = $(wildcard bpf/*.[ch] pystack_nb/*.[ch] pystack_nb/probe/*.[ch])

.PHONY: help setup demo test check format bench build clean distclean
.DEFAULT_GOAL := help

help:  ## list what can be made
	@awk -F ':.*## *' '/^[a-z]+:.*##/ { printf "%-10s %s\n", $$1, $$2 }' Makefile

setup:  ## packages of the distribution, .venv, the C parts
	@scripts/setup.sh

demo: setup  ## run the quickstart notebook under real probes
	@$(PY) scripts/demo.py

test: check  ## linters, types and the whole test suite
	@$(PY) -m pytest

check: setup  ## linters, formatters and the type checker
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/clang-format --dry-run -Werror $(C_SOURCES)

format: setup  ## rewrite the sources as `make check` wants them
	.venv/bin/ruff check --fix
	.venv/bin/ruff format
	.venv/bin/clang-format -i $(C_SOURCES)

bench: setup  ## measure beside peers; takes an hour or two on a quiet machine
	@$(PY) benchmarks/sampling.py
	@$(PY) benchmarks/calls.py
	@$(PY) benchmarks/faults.py
	@$(PY) benchmarks/protection.py

build: setup  ## a wheel, in dist/
	@$(PY) -m build --wheel --no-isolation --outdir dist

clean:  ## remove what was built
	@$(MAKE) -C bpf clean
	@rm -f pystack_nb/*.so pystack_nb/probe/*.so
	@rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

distclean: clean  ## remove .venv too
	@rm -rf .venv
