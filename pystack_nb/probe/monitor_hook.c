/* SPDX-License-Identifier: MIT */
/* CPython 3.11: the profile hook. */
#include "monitor.h"

#include "codes.h"
#include "levels.h"
#include "limits.h"

#if PY_VERSION_HEX < 0x030C0000

bool monitor_on;

/* Take the hook from a thread, as if it had not been set; an audit hook can't refuse that. */
static void unhook(PyThreadState *ts)
{
	PyObject *type, *value, *traceback;

	/* An exception may be on its way, and is not to be lost. */
	PyErr_Fetch(&type, &value, &traceback);
	if (_PyEval_SetProfile(ts, NULL, NULL)) {
		ts->c_profilefunc = NULL;
		ts->cframe->use_tracing = ts->c_tracefunc ? 255 : 0;
	}
	PyErr_Restore(type, value, traceback);
	if (this_thread)
		this_thread->hooked = 0;
}

/* PyEval_SetProfile's function: the evaluator has the calls of Python functions. */
static int profile(PyObject *unused, PyFrameObject *frame, int what, PyObject *arg)
{
	PyThreadState *ts = PyThreadState_Get();

	(void)unused, (void)frame;
	if (what == PyTrace_C_CALL && !limits.c_stopped)
		monitor_enter_function(ts, arg);
	else if (what == PyTrace_C_RETURN || what == PyTrace_C_EXCEPTION)
		monitor_leave_function(ts, arg,
				       what == PyTrace_C_RETURN ? PST_RETURNED : PST_RAISED);
	if (!rec.recording || limits.c_stopped)
		unhook(ts);
	return 0;
}

int monitor_start(struct monitor_wanted wanted)
{
	PyThreadState *ts = PyThreadState_Get();

	if (!wanted.c_calls)
		return 0;
	if (ts->c_profilefunc) {
		PyErr_SetString(PyExc_ValueError, "a profile function is set");
		return -1;
	}
	if (_PyEval_SetProfile(ts, profile, NULL)) {
		monitor_say_refused();
		return -1;
	}
	monitor_on = true;
	return 0;
}

/* Set the hook, if nobody has set another one; an audit hook may refuse it. */
static void hook(struct thread *t, PyThreadState *ts)
{
	PyObject *type, *value, *traceback;

	t->unhooked = true; /* an audit hook is a recorded call itself */
	if (ts->c_profilefunc)
		return;
	PyErr_Fetch(&type, &value, &traceback);
	t->refused = _PyEval_SetProfile(ts, profile, NULL) != 0;
	PyErr_Restore(type, value, traceback);
	t->unhooked = t->refused;
}

static void count_taken(const struct thread *t)
{
	if (rec.recording && t->recording == rec.recording)
		rec.shared->counters[PST_CALLS_HOOK_TAKEN]++;
}

COLD void monitor_look_again(struct thread *t, PyThreadState *ts)
{
	if (limits.c_stopped)
		return; /* the probe takes the hook away itself */
	if (ts->c_profilefunc == profile) {
		t->hooked = ts->id;
		t->unhooked = t->refused = false;
	} else if (t->hooked != ts->id) {
		/* The thread is new, or its state: another language's threads have many. */
		t->hooked = ts->id;
		hook(t, ts);
		if (t->unhooked)
			count_taken(t);
	} else if (!t->unhooked) {
		count_taken(t);
		if (t->top->frame == current_frame(ts))
			limits_leave_c_call(t);
		hook(t, ts);
	} else if (!ts->c_profilefunc && !t->refused) {
		hook(t, ts);
	}
}

void monitor_pause(void)
{
	PyThreadState *ts = PyThreadState_Get();

	if (monitor_on && ts->c_profilefunc == profile)
		unhook(ts);
}

void monitor_go_on(void)
{
	if (rec.recording && this_thread)
		monitor_look(this_thread, PyThreadState_Get());
}

void monitor_stop(void)
{
	PyThreadState *present = PyThreadState_Get();
	const struct thread *t = this_thread;

	if (!monitor_on)
		return;
	monitor_on = false;
	if (rec.shared && !limits.c_stopped && t && !t->unhooked && t->hooked == present->id &&
	    present->c_profilefunc != profile)
		rec.shared->counters[PST_CALLS_HOOK_TAKEN]++;
	for (PyThreadState *ts = PyInterpreterState_ThreadHead(PyInterpreterState_Get()); ts;
	     ts = PyThreadState_Next(ts))
		if (ts->c_profilefunc == profile)
			unhook(ts);
}

#endif
