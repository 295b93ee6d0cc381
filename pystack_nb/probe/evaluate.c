/* SPDX-License-Identifier: MIT */
#include "evaluate.h"

#include "codes.h"
#include "levels.h"
#include "limits.h"
#include "monitor.h"

static _PyFrameEvalFunction next = _PyEval_EvalFrameDefault;
static PyInterpreterState *interpreter;
static bool chained;        /* someone who came after the probe calls it, and was not removed yet */
static bool limits_reached; /* whether what he calls keeps to the limits */
static _PyFrameEvalFunction set_aside; /* while calls run unrecorded: who was there */
static uint32_t gap;                   /* counts these times */

static bool is_own(_PyFrameEvalFunction function);

/* Calls are recorded again, if `recording` goes on. */
static void end_gap(uint32_t recording)
{
	bool goes_on = recording && rec.recording == recording;

	rec.deep = false;
	if (_PyInterpreterState_GetEvalFrameFunc(interpreter) == next &&
	    (goes_on || !is_own(set_aside)))
		_PyInterpreterState_SetEvalFrameFunc(interpreter, set_aside);
	if (goes_on)
		recorder_gap(PST_WORD_GAP_END);
}

/*
 * Near the end of the C stack, calls run inside their caller's evaluation, as without a probe.
 * That can be had for all threads only.
 */
static COLD PyObject *run_deep(const struct thread *t, PyThreadState *ts, Frame *f, int throwing)
{
	uint32_t recording = rec.recording;

	if (!recording || rec.deep)
		return next(ts, f, throwing); /* the interpreter itself minds its stack */
	uint32_t mine = ++gap;

	rec.shared->counters[PST_CALLS_DEEP]++;
	recorder_gap(PST_WORD_GAP);
	rec.deep = true;
	set_aside = _PyInterpreterState_GetEvalFrameFunc(interpreter);
	_PyInterpreterState_SetEvalFrameFunc(interpreter, next);
	int taken = limit_recursion(ts, t->stack_left);
	PyObject *result = next(ts, f, throwing);

	unlimit_recursion(ts, taken);
	if (mine == gap && rec.deep)
		end_gap(recording);
	return result;
}

static inline PyObject *run(const struct thread *t, PyThreadState *ts, Frame *f, int throwing)
{
	if (UNLIKELY((uintptr_t)__builtin_frame_address(0) < t->stack_low))
		return run_deep(t, ts, f, throwing);
	give_recursion(ts);
	PyObject *result = next(ts, f, throwing);
	take_recursion(ts);
	return result;
}

static inline PyObject *record(struct thread *t, const struct code *c, enum pst_word kind,
			       PyThreadState *ts, Frame *f, int throwing)
{
	uint32_t recording = rec.recording;
	PyObject *result;

	push(t, current_frame(ts), f);
	put_now(t, kind, c->id);
	result = run(t, ts, f, throwing);
	if (pop(t, recording, f))
		put_now(t, PST_LEAVE, result ? PST_RETURNED : PST_RAISED);
	return result;
}

/* The same, with C functions, and with what was asked for of depth, short calls and budget. */
static PyObject *record_limited(struct thread *t, struct code *c, enum pst_word kind,
				PyThreadState *ts, Frame *f, int throwing)
{
	uint32_t recording = rec.recording;
	struct begun begun;
	PyObject *result;

	monitor_look(t, ts);
	c->calls++;
	push(t, current_frame(ts), f);
	uint32_t depth = t->top->depth = limits_depth(c, limits_around(&t->top[-1]));

	if (limits.depth && depth > limits.depth) {
		result = run(t, ts, f, throwing);
		pop(t, recording, f);
		return result;
	}
	limits_enter(t, &begun, kind, c->id); /* the code may be freed by its own call */
	result = run(t, ts, f, throwing);
	if (rec.recording == recording && t->recording == recording && t->top->frame == f) {
		monitor_look(t, ts);
		limits_leave_c_call(t);
	}
	if (pop(t, recording, f))
		limits_leave(t, &begun, result ? PST_RETURNED : PST_RAISED);
	return result;
}

/* Run an evaluation that leaves no event. */
static PyObject *pass(struct thread *t, PyThreadState *ts, Frame *f, int throwing)
{
	uint32_t recording = rec.recording;

	push(t, current_frame(ts), f);
	t->top->depth = limits_around(&t->top[-1]);
	PyObject *result = run(t, ts, f, throwing);

	pop(t, recording, f);
	return result;
}

static PyObject *special(struct thread *t, struct code *c, bool limited, PyThreadState *ts,
			 Frame *f, int throwing)
{
	if (!c || (c->generator && makes_generator(f)))
		return run(t, ts, f, throwing);
	if (c->mode == CODE_COUNTED)
		limits_counted(t, c);
	if (c->mode != CODE_GENERATOR || t->recording != rec.recording)
		return pass(t, ts, f, throwing);

	give_send(ts);
	PyObject *result = limited ? record_limited(t, c, PST_RESUME, ts, f, throwing)
				   : record(t, c, PST_RESUME, ts, f, throwing);
	take_send(ts);
	return result;
}

static uint64_t entered; /* while nothing is recorded */

/* Evaluate in a thread that is not recorded. */
static COLD PyObject *run_outside(bool limited, PyThreadState *ts, Frame *f, int throwing)
{
	const struct thread *t = this_thread;

	entered++;
	limits_reached = limited;
	if (rec.recording && t)
		return run(t, ts, f, throwing);
	/* The recording ended by itself, or another evaluator has put back the one before it. */
	if (!rec.recording && is_own(_PyInterpreterState_GetEvalFrameFunc(interpreter)))
		_PyInterpreterState_SetEvalFrameFunc(interpreter, next);
	return next(ts, f, throwing);
}

/* Whether whoever is in the probe's place calls it. */
static bool is_reached(void)
{
	uint64_t before = entered;
	PyObject *names = PyDict_New(), *result = NULL;

	if (names)
		result = PyRun_String("(lambda: None)()", Py_eval_input, names, names);
	PyErr_Clear();
	Py_XDECREF(result);
	Py_XDECREF(names);
	return entered != before;
}

/* What the two evaluators have in common; `limited` is known when each is compiled. */
static inline __attribute__((always_inline)) PyObject *
evaluate_with(bool limited, PyThreadState *ts, Frame *f, int throwing)
{
	struct thread *t = this_thread;

	if (UNLIKELY(!t || t->recording != rec.recording)) {
		t = rec.recording ? recorder_attach() : NULL;
		if (!t)
			return run_outside(limited, ts, f, throwing);
	}
	struct code *c = code_of(frame_code(f));

	if (UNLIKELY(!c || c->recording != rec.recording))
		c = codes_learn(t, f);
	if (UNLIKELY(!c || c->mode != CODE_RECORDED))
		return special(t, c, limited, ts, f, throwing);
	return limited ? record_limited(t, c, PST_ENTER, ts, f, throwing)
		       : record(t, c, PST_ENTER, ts, f, throwing);
}

static PyObject *evaluate(PyThreadState *ts, Frame *f, int throwing)
{
	return evaluate_with(false, ts, f, throwing);
}

static PyObject *evaluate_limited(PyThreadState *ts, Frame *f, int throwing)
{
	return evaluate_with(true, ts, f, throwing);
}

static bool is_own(_PyFrameEvalFunction function)
{
	return function == evaluate || function == evaluate_limited;
}

int evaluate_install(bool whole)
{
	_PyFrameEvalFunction present;

	interpreter = PyInterpreterState_Get();
	present = _PyInterpreterState_GetEvalFrameFunc(interpreter);
	if (chained && !is_own(present) && is_reached()) {
		if (whole || limits_reached)
			return 0;
		PyErr_SetString(PyExc_RuntimeError,
				"another frame evaluator, which came during an earlier recording, "
				"lets no limits be set to this one");
		return -1;
	}
	if (!is_own(present))
		next = present;
	chained = false;
	_PyInterpreterState_SetEvalFrameFunc(interpreter, whole ? evaluate : evaluate_limited);
	return 0;
}

bool evaluate_remove(void)
{
	if (!interpreter)
		return true;
	if (rec.deep) {
		gap++;
		end_gap(0);
	}

	_PyFrameEvalFunction present = _PyInterpreterState_GetEvalFrameFunc(interpreter);

	chained = !is_own(present) && present != next;
	if (!chained)
		_PyInterpreterState_SetEvalFrameFunc(interpreter, next);
	return !chained;
}
