/* SPDX-License-Identifier: MIT */
#include "monitor.h"

#include "codes.h"
#include "levels.h"
#include "limits.h"

/* The calling thread's state, if it is on a stack of evaluations that are recorded. */
static struct thread *thread_in(const PyThreadState *ts)
{
	struct thread *t = this_thread;

	if (!rec.recording || !t || t->loud_in != rec.recording)
		return NULL;
	if (t->top->frame != current_frame(ts) && !rec.deep && !levels_find(t, current_frame(ts)))
		return NULL;
	return t->top != t->stack->levels && t->top->frame == current_frame(ts) ? t : NULL;
}

void monitor_enter_function(const PyThreadState *ts, PyObject *callable)
{
	struct thread *t = thread_in(ts);

	/* What a call of a Python function costs more is counted with that. */
	if (t && !PyFunction_Check(callable) && !PyMethod_Check(callable)) {
		limits.c_spent += limits.c_call_ticks;
		limits_spend(t, limits.c_call_ticks);
	}
	if (!rec.recording)
		return;

	struct code *caller = t ? code_of(frame_code(t->top->frame)) : NULL;

	if (!caller || caller->recording != rec.recording || caller->mode == CODE_SKIPPED)
		return;
	limits_leave_c_call(t);
	if (!rec.recording || limits.c_stopped ||
	    (limits.depth && limits_around(t->top) >= limits.depth))
		return;
	struct code *c = codes_of_function(t, callable);

	if (!c || c->mode == CODE_SKIPPED)
		return;
	if (c->mode == CODE_COUNTED || caller->mode == CODE_COUNTED) {
		if (limits_counts(t->top))
			count_call(t, c->id);
		return;
	}
	c->calls++;
	t->top->c_calls = true;
	limits_enter(t, &t->top->of, PST_ENTER, c->id);
}

void monitor_leave_function(const PyThreadState *ts, PyObject *callable, enum pst_leave how)
{
	struct thread *t = thread_in(ts);

	if (t && t->top->c_calls &&
	    (PyCFunction_Check(callable) || Py_IS_TYPE(callable, &PyMethodDescr_Type))) {
		t->top->c_calls = false;
		limits_leave(t, &t->top->of, how);
	}
}

void monitor_say_refused(void)
{
	if (PyErr_ExceptionMatches(PyExc_Exception))
		_PyErr_FormatFromCause(PyExc_RuntimeError, "an audit hook refuses it");
}
