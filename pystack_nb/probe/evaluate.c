/* SPDX-License-Identifier: MIT */
#include "evaluate.h"

#include "codes.h"
#include "levels.h"
#include "limits.h"
#include "monitor.h"
#include "segments.h"

static _PyFrameEvalFunction next = _PyEval_EvalFrameDefault;
static PyInterpreterState *interpreter;
static bool chained;        /* someone who came after the probe calls it, and was not removed yet */
static bool limits_reached; /* whether what he calls keeps to the limits */
static _PyFrameEvalFunction set_aside; /* while calls run unrecorded: who was there */
static uint32_t gap;                   /* counts these times */
static _PyFrameEvalFunction seen;      /* another one, while recording */
static _PyFrameEvalFunction trusted;   /* one that calls the probe */

enum { RUNS_TO_END = CO_COROUTINE | CO_ITERABLE_COROUTINE | CO_ASYNC_GENERATOR };

static PyObject *only_in; /* the file whose code ends the waiting of a thread */

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

static COLD PyObject *run_deep(struct thread *t, PyThreadState *ts, Frame *f, int throwing);

static inline PyObject *run(struct thread *t, PyThreadState *ts, Frame *f, int throwing)
{
	if (UNLIKELY((uintptr_t)__builtin_frame_address(0) < t->stack_low))
		return run_deep(t, ts, f, throwing);
	give_recursion(ts);
	PyObject *result = next(ts, f, throwing);
	take_recursion(ts);
	return result;
}

/* An evaluation that runs on a stack of the probe's own. */
struct moved {
	struct thread *t;
	PyThreadState *ts;
	Frame *f;
	int throwing;
	PyObject *result;
};

static void run_moved(void *argument)
{
	struct moved *m = argument;

	m->result = run(m->t, m->ts, m->f, m->throwing);
}

/* The same, as without a probe: calls run inside their caller's evaluation. */
static void run_plain(void *argument)
{
	struct moved *m = argument;
	int taken = limit_recursion(m->ts, m->t->stack_left);

	m->result = next(m->ts, m->f, m->throwing);
	unlimit_recursion(m->ts, taken);
}

/* Leave exact mode, which can be had for all threads only, until this evaluation ends. */
static void run_in_gap(struct moved *m, uint32_t recording)
{
	uint32_t mine = ++gap;

	rec.shared->counters[PST_CALLS_DEEP]++;
	recorder_gap(PST_WORD_GAP);
	rec.deep = true;
	set_aside = _PyInterpreterState_GetEvalFrameFunc(interpreter);
	_PyInterpreterState_SetEvalFrameFunc(interpreter, next);
	if (segments_enter(m->t, SEGMENT_GAP)) {
		segments_call(m->t, run_plain, m);
		segments_leave(m->t);
	} else {
		monitor_pause();
		run_plain(m);
		monitor_go_on();
	}
	if (mine == gap && rec.deep)
		end_gap(recording);
}

/* The stack that the thread is on comes near its end. */
static COLD PyObject *run_deep(struct thread *t, PyThreadState *ts, Frame *f, int throwing)
{
	struct moved m = {t, ts, f, throwing, NULL};
	uint32_t recording = rec.recording;

	if (!recording || rec.deep)
		return next(ts, f, throwing); /* the interpreter itself minds its stack */
	if (segments_enter(t, SEGMENT_RECORDED)) {
		segments_call(t, run_moved, &m);
		segments_leave(t);
	} else {
		run_in_gap(&m, recording);
	}
	return m.result;
}

static inline PyObject *record(struct thread *t, const struct code *c, enum pst_word kind,
			       PyThreadState *ts, Frame *f, int throwing)
{
	uint32_t recording = rec.recording;
	PyObject *result;

	if (!push(t, current_frame(ts), f))
		return run(t, ts, f, throwing);
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
	if (!push(t, current_frame(ts), f))
		return run(t, ts, f, throwing);
	uint32_t depth = t->top->depth = limits_depth(c, limits_around(&t->top[-1]));

	t->top->whose = limits_whose(c, &t->top[-1]);

	if (limits.depth && depth > limits.depth) {
		limits.passed += limits.pass_ticks;
		limits_spend(t, limits.pass_ticks);
		result = run(t, ts, f, throwing);
		pop(t, recording, f);
		return result;
	}
	limits_enter(t, &begun, kind, c->id); /* the code may be freed by its own call */
	limits_spend(t, limits.call_ticks);
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
static PyObject *pass(struct thread *t, const struct code *c, PyThreadState *ts, Frame *f,
		      int throwing)
{
	uint32_t recording = rec.recording;

	if (!push(t, current_frame(ts), f))
		return run(t, ts, f, throwing);
	t->top->depth = limits_around(&t->top[-1]);
	t->top->whose = limits_whose(c, &t->top[-1]);
	if (c->mode == CODE_COUNTED && limits_counts(t->top))
		count_call(t, c->id);
	limits.passed += limits.pass_ticks;
	limits_spend(t, limits.pass_ticks);
	PyObject *result = run(t, ts, f, throwing);

	pop(t, recording, f);
	return result;
}

static PyObject *evaluate(PyThreadState *ts, Frame *f, int throwing);
static PyObject *evaluate_limited(PyThreadState *ts, Frame *f, int throwing);
static PyObject *run_begun(_PyFrameEvalFunction evaluate_loud, struct thread *t, PyThreadState *ts,
			   Frame *f, int throwing);

/* Whether this is code that a thread waits for. */
static bool is_awaited(const Frame *f)
{
	return only_in && !PyUnicode_Compare(frame_code(f)->co_filename, only_in);
}

static PyObject *special(struct thread *t, struct code *c, bool limited, PyThreadState *ts,
			 Frame *f, int throwing)
{
	if (!c || (c->generator && makes_generator(f)))
		return run(t, ts, f, throwing);
	if (UNLIKELY(f == t->began) && is_awaited(f)) /* whatever becomes of its calls */
		return run_begun(limited ? evaluate_limited : evaluate, t, ts, f, throwing);
	if (c->mode != CODE_GENERATOR)
		return pass(t, c, ts, f, throwing);

	give_send(ts);
	PyObject *result = limited ? record_limited(t, c, PST_RESUME, ts, f, throwing)
				   : record(t, c, PST_RESUME, ts, f, throwing);
	take_send(ts);
	return result;
}

/* Evaluate in a quiet thread; code that it waits for is evaluated loud. */
static COLD PyObject *run_quiet(_PyFrameEvalFunction evaluate_loud, struct thread *t,
				PyThreadState *ts, Frame *f, int throwing)
{
	uint32_t recording = rec.recording;

	if (t->quiet != WAITING || !is_awaited(f))
		return run(t, ts, f, throwing);
	/* A generator that stops half-way may never go on. */
	bool resumed = frame_code(f)->co_flags & RUNS_TO_END && !makes_generator(f);

	t->quiet = 0;
	PyObject *result = evaluate_loud(ts, f, throwing);

	if (rec.recording != recording || t->recording != recording)
		return result;
	if (resumed && is_suspended(f))
		t->began = f; /* what it waits for is part of it */
	else
		t->quiet |= WAITING;
	return result;
}

/* The same coroutine, as it goes on. */
static COLD PyObject *run_begun(_PyFrameEvalFunction evaluate_loud, struct thread *t,
				PyThreadState *ts, Frame *f, int throwing)
{
	t->began = NULL;
	t->quiet |= WAITING;
	return run_quiet(evaluate_loud, t, ts, f, throwing);
}

void evaluate_only_in(PyObject *file)
{
	struct thread *t = file ? recorder_attach() : NULL;

	Py_XSETREF(only_in, Py_XNewRef(file));
	if (t)
		t->quiet |= WAITING;
}

static uint64_t entered; /* while nothing is recorded */

/* Evaluate in a thread that is not recorded. */
static COLD PyObject *run_outside(bool limited, PyThreadState *ts, Frame *f, int throwing)
{
	struct thread *t = this_thread;

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

	if (UNLIKELY(!t || t->loud_in != rec.recording)) {
		if (!rec.recording)
			return run_outside(limited, ts, f, throwing);
		if (!t || t->recording != rec.recording)
			t = recorder_attach();
		if (!t)
			return run_outside(limited, ts, f, throwing);
		if (t->quiet)
			return run_quiet(limited ? evaluate_limited : evaluate, t, ts, f, throwing);
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
	seen = NULL;
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

void evaluate_look(void)
{
	_PyFrameEvalFunction present = _PyInterpreterState_GetEvalFrameFunc(interpreter);

	if (rec.deep || is_own(present) || present == next)
		return;
	if (present == seen)
		trusted = present; /* another batch was filled meanwhile */
	seen = present;
}

enum pst_replaced evaluate_replaced(void)
{
	if (chained)
		return is_reached() ? PST_NOT_REPLACED : PST_REPLACED;
	return seen && seen != trusted ? PST_PERHAPS_REPLACED : PST_NOT_REPLACED;
}
