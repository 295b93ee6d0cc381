# Builds the package's compiled modules for one interpreter, where a checkout imports them.
#
#     make -f native.mk                            for .venv
#     make -f native.mk PYTHON=PATH                for another interpreter
#     make -f native.mk probe PYTHON=PATH OUTPUT=DIR    the probe alone, and elsewhere
#
# `_pairing` keeps to the limited API, and one file serves every interpreter; the probe reads
# the interpreter's own structures, each minor version has its own, and pystack_nb/probe/supported.py
# knows for which there is one: the others get `_pairing` alone.

PYTHON ?= .venv/bin/python
OUTPUT ?= pystack_nb/probe
CFLAGS ?= -O2 -g
MODULE := -std=gnu11 -Wall -Wextra -fvisibility=hidden -fPIC -shared

facts := $(shell $(PYTHON) -I -c "from sysconfig import get_config_var as v, get_path as p; \
	print(p('include'), p('platinclude'), v('EXT_SUFFIX'))")
ifeq ($(facts),)
$(error $(PYTHON) does not run; name an interpreter: make -f native.mk PYTHON=PATH)
endif
INCLUDE := $(word 1,$(facts))
PYTHON_CFLAGS := $(addprefix -I,$(sort $(wordlist 1,2,$(facts))))
PROBE := $(OUTPUT)/_probe$(word 3,$(facts))
PAIRING_SOURCES := pystack_nb/_pairing.c pystack_nb/_pairing_module.c
PROBE_SOURCES := $(wildcard pystack_nb/probe/*.c)

no_probe := $(shell $(PYTHON) -I pystack_nb/probe/supported.py || echo "supported.py fails")

.PHONY: all pairing probe without_probe refuse_probe
all: pairing $(if $(no_probe),without_probe,probe)
pairing: pystack_nb/_pairing.abi3.so
probe: $(if $(no_probe),refuse_probe,$(PROBE))

without_probe:
	@echo "$(no_probe): calls can't be recorded; everything else is built." >&2

refuse_probe:
	$(error $(no_probe); name such an interpreter: make -f native.mk probe PYTHON=PATH)

# Each is put in its place whole: a process that has the old one mapped keeps it.
pystack_nb/_pairing.abi3.so: $(PAIRING_SOURCES) pystack_nb/_pairing.h bpf/pystack_time.h \
		$(INCLUDE)/Python.h
	$(CC) $(CFLAGS) $(MODULE) $(PYTHON_CFLAGS) -Ibpf -o $@.new $(PAIRING_SOURCES) $(LDFLAGS)
	@mv -f $@.new $@

$(PROBE): $(PROBE_SOURCES) $(wildcard pystack_nb/probe/*.h) bpf/pystack_time.h $(INCLUDE)/Python.h
	@mkdir -p $(OUTPUT)
	$(CC) $(CFLAGS) $(MODULE) $(PYTHON_CFLAGS) -Ibpf -o $@.new $(PROBE_SOURCES) $(LDFLAGS)
	@mv -f $@.new $@

$(INCLUDE)/Python.h:
	$(error $(PYTHON) has no headers in $(INCLUDE); install them (Debian: apt-get install \
		python3-dev), or name an interpreter that has: make PYTHON=PATH)
