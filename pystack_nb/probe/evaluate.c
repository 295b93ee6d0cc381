/* SPDX-License-Identifier: MIT */
#include "evaluate.h"

#include "codes.h"
#include "levels.h"
#include "limits.h"
#include "monitor.h"

static _PyFrameEvalFunction next = _PyEval_EvalFrameDefault;
static _PyFrameEvalFunction installed;
static PyInterpreterState *interpreter;
static bool chained;  /* someone who came after the probe calls it, and was not removed yet */
static uint32_t deep; /* evaluations in which calls run unrecorded, of all threads */

static inline PyObject *run(PyThreadState *ts, Frame *f, int throwing)
{
	give_recursion(ts);
	PyObject *result = next(ts, f, throwing);
	take_recursion(ts);
	return result;
}

/* Near the end of the C stack, calls run inside their caller's evaluation, as without a probe. */
static COLD PyObject *run_deep(struct thread *t, uint32_t recording, PyThreadState *ts, Frame *f,
			       int throwing)
{
	rec.shared->counters[PST_CALLS_DEEP]++;
	put_other(t, PST_WORD_GAP, 0);
	if (!deep++)
		_PyInterpreterState_SetEvalFrameFunc(interpreter, next);
	PyObject *result = next(ts, f, throwing);
	if (!--deep && rec.recording == recording)
		_PyInterpreterState_SetEvalFrameFunc(interpreter, installed);
	if (rec.recording == recording && t->recording == recording)
		put_other(t, PST_WORD_GAP_END, 0);
	return result;
}

static inline PyObject *record(struct thread *t, const struct code *c, enum pst_word kind,
			       PyThreadState *ts, Frame *f, int throwing)
{
	uint32_t recording = rec.recording;
	PyObject *result;

	push(t, current_frame(ts), f);
	put_now(t, kind, c->id);
	if (UNLIKELY((uintptr_t)__builtin_frame_address(0) < t->stack_low) && !deep)
		result = run_deep(t, recording, ts, f, throwing);
	else
		result = run(ts, f, throwing);
	if (pop(t, recording, f))
		put_now(t, PST_LEAVE, result ? PST_RETURNED : PST_RAISED);
	return result;
}

/* The same, with what was asked for of depth, short calls and budget. */
static PyObject *record_limited(struct thread *t, struct code *c, enum pst_word kind,
				PyThreadState *ts, Frame *f, int throwing)
{
	uint32_t recording = rec.recording;
	uint64_t events = rec.events;
	PyObject *result;

	c->calls++;
	push(t, current_frame(ts), f);
	uint32_t depth = t->top->depth = t->top[-1].depth + 1;

	if (limits.depth && depth > limits.depth) {
		result = run(ts, f, throwing);
		pop(t, recording, f);
		return result;
	}
	uint64_t sequence = t->batch->sequence, start;
	uint32_t at = t->batch->count;

	start = put_now(t, kind, c->id);
	if (UNLIKELY(rec.events != events))
		limits_look(t);
	if (UNLIKELY((uintptr_t)__builtin_frame_address(0) < t->stack_low) && !deep)
		result = run_deep(t, recording, ts, f, throwing);
	else
		result = run(ts, f, throwing);
	if (!pop(t, recording, f))
		return result;
	uint64_t now = ticks_now();

	if (now - start >= limits.min_ticks || c->id >= PST_COUNTED) {
		put_now(t, PST_LEAVE, result ? PST_RETURNED : PST_RAISED);
		return result;
	}
	rec.counts[c->id].calls++;
	rec.counts[c->id].ticks += now - start;
	if (t->batch->sequence == sequence && t->batch->count == at + 1)
		t->batch->count = at; /* nothing came after its beginning */
	else
		put_now(t, PST_LEAVE, PST_SHORT | (result ? PST_RETURNED : PST_RAISED));
	return result;
}

/* Run an evaluation that leaves no event. */
static PyObject *pass(struct thread *t, PyThreadState *ts, Frame *f, int throwing)
{
	uint32_t recording = rec.recording;

	push(t, current_frame(ts), f);
	t->top->depth = t->top[-1].depth;
	PyObject *result = run(ts, f, throwing);

	pop(t, recording, f);
	return result;
}

static COLD PyObject *special(struct thread *t, struct code *c, bool limited, PyThreadState *ts,
			      Frame *f, int throwing)
{
	if (!c || (c->generator && makes_generator(f)))
		return run(ts, f, throwing);
	if (c->mode == CODE_COUNTED)
		limits_counted(t, c);
	if (c->mode != CODE_GENERATOR || t->recording != rec.recording)
		return pass(t, ts, f, throwing);
	return limited ? record_limited(t, c, PST_RESUME, ts, f, throwing)
		       : record(t, c, PST_RESUME, ts, f, throwing);
}

static uint64_t entered; /* while nothing is recorded */

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
		entered++;
		t = rec.recording ? recorder_attach() : NULL;
		if (!t)
			return run(ts, f, throwing);
		monitor_attach();
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

void evaluate_install(void)
{
	_PyFrameEvalFunction present;

	interpreter = PyInterpreterState_Get();
	present = _PyInterpreterState_GetEvalFrameFunc(interpreter);
	deep = 0;
	if (chained && !is_own(present) && is_reached())
		return;
	if (!is_own(present))
		next = present;
	chained = false;
	installed = limits_any() ? evaluate_limited : evaluate;
	_PyInterpreterState_SetEvalFrameFunc(interpreter, installed);
}

bool evaluate_remove(void)
{
	if (!interpreter)
		return true;

	_PyFrameEvalFunction present = _PyInterpreterState_GetEvalFrameFunc(interpreter);

	chained = !is_own(present) && present != next;
	if (!chained)
		_PyInterpreterState_SetEvalFrameFunc(interpreter, next);
	return !chained;
}
