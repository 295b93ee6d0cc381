/* SPDX-License-Identifier: MIT */
/*
 * What of reading calls runs once per event, for Python: `_pairing.pyi` says how to call it.
 *
 * Built for the limited API, and arrays come and go through the buffer protocol, so that
 * one file serves every CPython and every NumPy.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "_pairing.h"

#include <stdlib.h>
#include <string.h>

/* A buffer as an array of `count` items; NULL and an exception if it is none. */
static void *array_of(const Py_buffer *buffer, int64_t count, size_t size)
{
	if (buffer->len == (Py_ssize_t)(count * size) && (uintptr_t)buffer->buf % size == 0)
		return buffer->buf;
	PyErr_SetString(PyExc_ValueError, "an array has another length than it must have");
	return NULL;
}

static void release(Py_buffer *buffers, size_t count)
{
	for (size_t i = 0; i < count; i++)
		PyBuffer_Release(&buffers[i]);
}

static bool take_words(struct pairing *p, const Py_buffer *words, const Py_buffer *batches)
{
	p->words = words->buf;
	p->word_count = words->len / sizeof(uint64_t);
	p->batch_count = batches->len / sizeof(*p->batches);
	p->batches = batches->buf;
	if (pairing_batches_are_valid(p))
		return true;
	PyErr_SetString(PyExc_ValueError, "the batches do not lie in the words");
	return false;
}

static bool walk(struct pairing *p, bool fill)
{
	int failed;

	Py_BEGIN_ALLOW_THREADS failed = pairing_walk(p, fill);
	Py_END_ALLOW_THREADS if (failed) PyErr_NoMemory();
	return !failed;
}

static PyObject *measure(PyObject *module, PyObject *args)
{
	struct pairing p = {0};
	Py_buffer in[2];
	PyObject *result = NULL;
	long long threads;

	(void)module;
	if (!PyArg_ParseTuple(args, "y*y*L", &in[0], &in[1], &threads))
		return NULL;
	p.thread_count = threads;
	if (take_words(&p, &in[0], &in[1]) && walk(&p, false))
		result = Py_BuildValue("LLL", (long long)p.found.rows,
				       (long long)p.found.definitions, (long long)p.found.changes);
	release(in, 2);
	return result;
}

enum {
	WORDS,
	BATCHES,
	KNOTS,
	START,
	DURATION,
	SELF,
	PARENT,
	DEPTH,
	CODE,
	KIND,
	COMPLETE,
	DEFINITIONS,
	CHANGES,
	THREAD_ROWS,
	ARRAYS,
};

static bool take_arrays(struct pairing *p, const Py_buffer *b)
{
	int64_t rows = b[KIND].len;

	p->thread_count = b[THREAD_ROWS].len / sizeof(int64_t);
	p->thread_rows = b[THREAD_ROWS].buf;
	p->knot_count = b[KNOTS].len / sizeof(*p->knots);
	p->knots = b[KNOTS].buf;
	p->room.rows = rows;
	p->room.definitions = b[DEFINITIONS].len / sizeof(*p->definitions);
	p->definitions = b[DEFINITIONS].buf;
	p->room.changes = b[CHANGES].len / sizeof(*p->changes);
	p->changes = b[CHANGES].buf;
	if (!pairing_knots_are_valid(p)) {
		PyErr_SetString(PyExc_ValueError, "the knots do not rise");
		return false;
	}
	return (p->rows.start = array_of(&b[START], rows, sizeof(int64_t))) &&
	       (p->rows.duration = array_of(&b[DURATION], rows, sizeof(int64_t))) &&
	       (p->rows.self = array_of(&b[SELF], rows, sizeof(int64_t))) &&
	       (p->rows.parent = array_of(&b[PARENT], rows, sizeof(int64_t))) &&
	       (p->rows.depth = array_of(&b[DEPTH], rows, sizeof(int32_t))) &&
	       (p->rows.code = array_of(&b[CODE], rows, sizeof(uint32_t))) &&
	       (p->rows.kind = array_of(&b[KIND], rows, 1)) &&
	       (p->rows.complete = array_of(&b[COMPLETE], rows, 1)) &&
	       take_words(p, &b[WORDS], &b[BATCHES]);
}

static PyObject *pair(PyObject *module, PyObject *args)
{
	struct pairing p = {0};
	Py_buffer b[ARRAYS];
	PyObject *result = NULL;
	long long end_ns;

	(void)module;
	if (!PyArg_ParseTuple(args, "y*y*y*Lw*w*w*w*w*w*w*w*w*w*w*", &b[WORDS], &b[BATCHES],
			      &b[KNOTS], &end_ns, &b[START], &b[DURATION], &b[SELF], &b[PARENT],
			      &b[DEPTH], &b[CODE], &b[KIND], &b[COMPLETE], &b[DEFINITIONS],
			      &b[CHANGES], &b[THREAD_ROWS]))
		return NULL;
	p.end_ns = end_ns;
	if (take_arrays(&p, b) && walk(&p, true))
		result = Py_BuildValue(
			"{sLsLsLsLsLsLsLsL}", "rows", (long long)p.found.rows, "unpaired",
			(long long)p.found.unpaired, "damaged", (long long)p.found.damaged, "open",
			(long long)p.found.open, "left_out", (long long)p.found.left_out,
			"short_kept", (long long)p.found.short_kept, "gaps",
			(long long)p.found.gaps, "gap_ns", (long long)p.found.gap_ns);
	release(b, ARRAYS);
	return result;
}

struct summing {
	int64_t rows, keys;
	const int64_t *order, *parent, *key;
	const uint8_t *counted;
	/* Without a sign: damaged tables may overflow them. */
	const uint64_t *duration, *self;
	uint64_t *calls, *total, *own;
	int64_t *stack, *open;
};

static void add_up(struct summing *s)
{
	int64_t depth = 0;

	for (int64_t i = 0; i < s->rows; i++) {
		int64_t row = s->order[i], key = s->key[row];

		/* What is open when a call begins is the one that called it, and its callers. */
		while (depth && s->stack[depth - 1] != s->parent[row])
			s->open[s->key[s->stack[--depth]]]--;
		s->calls[key] += s->counted[row];
		s->own[key] += s->self[row];
		if (!s->open[key]++)
			s->total[key] += s->duration[row];
		s->stack[depth++] = row;
	}
}

static bool all_below(const int64_t *numbers, int64_t count, int64_t bound)
{
	for (int64_t i = 0; i < count; i++)
		if (numbers[i] < 0 || numbers[i] >= bound)
			return false;
	return true;
}

static bool take_sums(struct summing *s, const Py_buffer *b)
{
	s->rows = b[0].len / sizeof(int64_t);
	s->keys = b[6].len / sizeof(int64_t);
	if (!((s->order = array_of(&b[0], s->rows, sizeof(int64_t))) &&
	      (s->parent = array_of(&b[1], s->rows, sizeof(int64_t))) &&
	      (s->key = array_of(&b[2], s->rows, sizeof(int64_t))) &&
	      (s->duration = array_of(&b[3], s->rows, sizeof(int64_t))) &&
	      (s->self = array_of(&b[4], s->rows, sizeof(int64_t))) &&
	      (s->counted = array_of(&b[5], s->rows, 1)) &&
	      (s->calls = array_of(&b[6], s->keys, sizeof(int64_t))) &&
	      (s->total = array_of(&b[7], s->keys, sizeof(int64_t))) &&
	      (s->own = array_of(&b[8], s->keys, sizeof(int64_t)))))
		return false;
	if (all_below(s->order, s->rows, s->rows) && all_below(s->key, s->rows, s->keys))
		return true;
	PyErr_SetString(PyExc_ValueError, "a number names a row or a key that is not there");
	return false;
}

static PyObject *sum_up(PyObject *module, PyObject *args)
{
	struct summing s = {0};
	Py_buffer b[9];
	bool done = false;

	(void)module;
	if (!PyArg_ParseTuple(args, "y*y*y*y*y*y*w*w*w*", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5],
			      &b[6], &b[7], &b[8]))
		return NULL;
	if (take_sums(&s, b)) {
		s.stack = malloc((s.rows + 1) * sizeof(*s.stack));
		s.open = calloc(s.keys + 1, sizeof(*s.open));
		done = s.stack && s.open;
		if (!done)
			PyErr_NoMemory();
		Py_BEGIN_ALLOW_THREADS if (done) add_up(&s);
		Py_END_ALLOW_THREADS free(s.stack);
		free(s.open);
	}
	release(b, 9);
	if (!done)
		return NULL;
	Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
	{"measure", measure, METH_VARARGS, NULL},
	{"pair", pair, METH_VARARGS, NULL},
	{"sum_up", sum_up, METH_VARARGS, NULL},
	{NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT,
	.m_name = "pystack_nb._pairing",
	.m_size = 0,
	.m_methods = methods,
};

PyMODINIT_FUNC PyInit__pairing(void)
{
	return PyModuleDef_Init(&definition);
}
