/* SPDX-License-Identifier: MIT */
/*
 * What the frame evaluator does not see: on 3.13, the calls of a class's __init__ that the
 * interpreter has specialised (CALL_ALLOC_AND_ENTER_INIT in Python/bytecodes.c does not ask
 * for an evaluator), by sys.monitoring (PEP 669); and calls of C functions, by that from
 * 3.12 on (monitor_events.c), and by the profile hook on 3.11 (monitor_hook.c).
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
/* Switch them off, and give the tool id back; what others have taken away is counted. */
void monitor_stop(void);

/*
 * On 3.11, what the interpreter has specialised runs as if it had not while there is a profile
 * hook, which takes C stack: take it from this thread, and give it back.
 */
void monitor_pause(void);
void monitor_go_on(void);

/* For monitor_hook.c and monitor_events.c, which tell: a function in C is called, and returns. */
void monitor_enter_function(const PyThreadState *ts, PyObject *callable);
void monitor_leave_function(const PyThreadState *ts, PyObject *callable, enum pst_leave how);
/* An exception that says what an audit hook's own does. */
void monitor_say_refused(void);

#if PY_VERSION_HEX < 0x030C0000
extern bool monitor_on;

/* See whether the profile hook is there. */
void monitor_look_again(struct thread *t, PyThreadState *ts);

static inline void monitor_look(struct thread *t, PyThreadState *ts)
{
	if (UNLIKELY(monitor_on))
		monitor_look_again(t, ts);
}
#else
static inline void monitor_look(struct thread *t, PyThreadState *ts)
{
	(void)t, (void)ts;
}
#endif

#endif
