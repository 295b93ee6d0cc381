/* SPDX-License-Identifier: MIT */
#include "evaluate.h"

#include "codes.h"
#include "levels.h"

static _PyFrameEvalFunction next = _PyEval_EvalFrameDefault;
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
		_PyInterpreterState_SetEvalFrameFunc(interpreter, evaluate);
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

static COLD PyObject *special(struct thread *t, struct code *c, PyThreadState *ts, Frame *f,
			      int throwing)
{
	uint32_t recording = rec.recording;

	if (!c || (c->generator && makes_generator(f)))
		return run(ts, f, throwing);
	if (c->mode == CODE_GENERATOR)
		return record(t, c, PST_RESUME, ts, f, throwing);
	if (c->mode == CODE_COUNTED && c->id < PST_COUNTED)
		rec.counts[c->id].calls++;
	push(t, current_frame(ts), f);
	PyObject *result = run(ts, f, throwing);
	pop(t, recording, f);
	return result;
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

PyObject *evaluate(PyThreadState *ts, Frame *f, int throwing)
{
	struct thread *t = this_thread;

	if (UNLIKELY(!t || t->recording != rec.recording)) {
		entered++;
		t = rec.recording ? recorder_attach() : NULL;
		if (!t)
			return run(ts, f, throwing);
	}
	struct code *c = code_of(frame_code(f));

	if (UNLIKELY(!c || c->recording != rec.recording))
		c = codes_learn(t, f);
	if (UNLIKELY(!c || c->mode != CODE_RECORDED))
		return special(t, c, ts, f, throwing);
	return record(t, c, PST_ENTER, ts, f, throwing);
}

void evaluate_install(void)
{
	_PyFrameEvalFunction present;

	interpreter = PyInterpreterState_Get();
	present = _PyInterpreterState_GetEvalFrameFunc(interpreter);
	deep = 0;
	if (present == evaluate || (chained && is_reached()))
		return;
	chained = false;
	next = present;
	_PyInterpreterState_SetEvalFrameFunc(interpreter, evaluate);
}

bool evaluate_remove(void)
{
	if (!interpreter)
		return true;

	_PyFrameEvalFunction present = _PyInterpreterState_GetEvalFrameFunc(interpreter);

	chained = present != evaluate && !(deep && present == next);
	if (!chained)
		_PyInterpreterState_SetEvalFrameFunc(interpreter, next);
	return !chained;
}
