/* SPDX-License-Identifier: MIT */
/*
 * What the probe reads of the interpreter's own structures, one name for all minors.
 * Sources: Include/internal/pycore_frame.h and Objects/codeobject.c of each.
 */
#ifndef PYSTACK_FRAMES_H
#define PYSTACK_FRAMES_H

#define Py_BUILD_CORE_MODULE 1
#include <stdbool.h>

#include <Python.h>
#include <internal/pycore_frame.h>
#include <internal/pycore_runtime.h>

#if PY_VERSION_HEX < 0x030B0000 || PY_VERSION_HEX >= 0x030E0000
#error "the probe knows the frames of CPython 3.11, 3.12 and 3.13"
#endif

#ifdef Py_GIL_DISABLED
#error "the probe relies on the GIL"
#endif

typedef struct _PyInterpreterFrame Frame;

/* Objects/codeobject.c: what code->co_extra leads to. */
struct code_extras {
	Py_ssize_t size;
	void *extras[1];
};

static inline PyCodeObject *frame_code(const Frame *f)
{
#if PY_VERSION_HEX >= 0x030D0000
	return (PyCodeObject *)f->f_executable;
#else
	return f->f_code;
#endif
}

/* The innermost Python frame of a thread. */
static inline Frame *current_frame(const PyThreadState *ts)
{
#if PY_VERSION_HEX >= 0x030D0000
	return ts->current_frame;
#else
	return ts->cframe->current_frame;
#endif
}

/*
 * Whether a frame of an evaluation that has not ended has returned: from 3.12 on, its objects end
 * after it has left the thread's frames.  While it runs, its stack has no size.
 */
static inline bool is_ending(const Frame *f)
{
#if PY_VERSION_HEX >= 0x030C0000
	return f->stacktop >= 0;
#else
	(void)f;
	return false;
#endif
}

/*
 * Whether this is the evaluation of a generator function's or coroutine's first
 * instructions, which make the generator and return it: creation is no call.
 */
static inline int makes_generator(const Frame *f)
{
	return f->owner != FRAME_OWNED_BY_GENERATOR;
}

/* Whether a generator's evaluation that has just ended goes on later. */
static inline bool is_suspended(Frame *f)
{
	return _PyFrame_GetGenerator(f)->gi_frame_state < FRAME_EXECUTING;
}

/*
 * The evaluator counts C recursion by as much (Python/ceval.c, PY_EVAL_C_STACK_UNITS),
 * which a call from Python to Python costs nothing of without a probe.  The probe gives
 * it back, and watches the stack itself.
 */
#if PY_VERSION_HEX >= 0x030C0000
enum { EVALUATION_UNITS = 2 };
enum { UNIT_BYTES = 1024 }; /* of the stack; the interpreter's own estimate is less */
static inline void give_recursion(PyThreadState *ts)
{
	ts->c_recursion_remaining += EVALUATION_UNITS;
}
static inline void take_recursion(PyThreadState *ts)
{
	ts->c_recursion_remaining -= EVALUATION_UNITS;
}
/* Let it count what the stack has, no more and no less; what was taken away. */
static inline int limit_recursion(PyThreadState *ts, size_t stack_left)
{
	int taken = ts->c_recursion_remaining - (int)(stack_left / UNIT_BYTES);

	ts->c_recursion_remaining -= taken;
	return taken;
}
static inline void unlimit_recursion(PyThreadState *ts, int taken)
{
	ts->c_recursion_remaining += taken;
}
#else
static inline void give_recursion(PyThreadState *ts)
{
	(void)ts;
}
static inline void take_recursion(PyThreadState *ts)
{
	(void)ts;
}
static inline int limit_recursion(PyThreadState *ts, size_t stack_left)
{
	(void)ts, (void)stack_left;
	return 0;
}
static inline void unlimit_recursion(PyThreadState *ts, int taken)
{
	(void)ts, (void)taken;
}
#endif

/*
 * Where a coroutine awaits another one, 3.12 calls its `send` method if there is an evaluator,
 * and counts that as well (SEND in Python/bytecodes.c).
 */
#if PY_VERSION_HEX >= 0x030C0000 && PY_VERSION_HEX < 0x030D0000
static inline void give_send(PyThreadState *ts)
{
	ts->c_recursion_remaining++;
}
static inline void take_send(PyThreadState *ts)
{
	ts->c_recursion_remaining--;
}
#else
static inline void give_send(PyThreadState *ts)
{
	(void)ts;
}
static inline void take_send(PyThreadState *ts)
{
	(void)ts;
}
#endif

#endif
