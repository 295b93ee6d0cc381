/* SPDX-License-Identifier: MIT */
/*
 * What the frame evaluator does not see, by sys.monitoring (PEP 669): on 3.13, the calls
 * of a class's __init__ that the interpreter has specialised (CALL_ALLOC_AND_ENTER_INIT
 * in Python/bytecodes.c does not ask for an evaluator); and calls into C functions.
 */
#ifndef PYSTACK_MONITOR_H
#define PYSTACK_MONITOR_H

#include "recorder.h"

struct monitor_wanted {
	bool init;    /* __init__ */
	bool c_calls; /* C functions */
};

/* Take a tool id and switch the events on; -1 with an exception. */
int monitor_start(struct monitor_wanted wanted);
/* Switch them off, and give the tool id back; -1 with an exception. */
int monitor_stop(void);

#endif
