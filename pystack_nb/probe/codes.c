/* SPDX-License-Identifier: MIT */
#include "codes.h"

#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

enum {
	LARGEST_ID = (1 << PST_OPERAND_BITS) - 1,
	TEXT_PART = 4000, /* bytes of a file's or a function's name */
};

struct filters filters;
Py_ssize_t code_index = -1;

static uint32_t last_id;

#if PY_VERSION_HEX < 0x030C0000
#define PyUnstable_Eval_RequestCodeExtraIndex _PyEval_RequestCodeExtraIndex
#define PyUnstable_Code_SetExtra              _PyCode_SetExtra
#endif

int codes_init(void)
{
	code_index = PyUnstable_Eval_RequestCodeExtraIndex(free);
	if (code_index < 0) {
		PyErr_SetString(PyExc_RuntimeError, "no room is left in code objects");
		return -1;
	}
	return 0;
}

void codes_begin(void)
{
	last_id = 0;
}

/* The beginning of a str, as UTF-8, NUL behind it; the bytes used. */
static size_t copy_text(char *to, PyObject *text)
{
	Py_ssize_t size;
	const char *from = PyUnicode_AsUTF8AndSize(text, &size);
	PyObject *bytes = NULL;

	if (!from) { /* lone surrogates */
		PyErr_Clear();
		bytes = PyUnicode_AsEncodedString(text, "utf-8", "backslashreplace");
		if (!bytes) {
			PyErr_Clear();
			*to = 0;
			return 1;
		}
		from = PyBytes_AS_STRING(bytes);
		size = PyBytes_GET_SIZE(bytes);
	}
	if (size > TEXT_PART)
		size = TEXT_PART;
	memcpy(to, from, size);
	to[size] = 0;
	Py_XDECREF(bytes);
	return size + 1;
}

static void put_code(struct thread *t, const struct code *c, const PyCodeObject *code)
{
	union {
		char text[2 * TEXT_PART + 64];
		uint64_t words[TEXT_PART / 4 + 8];
	} u;
	size_t size = copy_text(u.text, code->co_filename);

	size += copy_text(u.text + size, code->co_qualname);
	size += sprintf(u.text + size, "%d", code->co_firstlineno) + 1;
	while (size % 8)
		u.text[size++] = 0;
	recorder_reserve(t, 1 + size / 8);
	put(t, (uint64_t)PST_OTHER << PST_KIND_SHIFT |
		       (uint64_t)(PST_WORD_CODE | size / 8 << 4) << PST_TIME_BITS | c->id);
	for (size_t i = 0; i < size / 8; i++)
		put(t, u.words[i]);
}

static bool is_one_of(const struct patterns *patterns, const char *name)
{
	for (size_t i = 0; name && i < patterns->count; i++)
		if (!fnmatch(patterns->globs[i], name, 0))
			return true;
	return false;
}

static const char *utf8_of(PyObject *text)
{
	const char *found = text && PyUnicode_Check(text) ? PyUnicode_AsUTF8(text) : NULL;

	if (!found)
		PyErr_Clear();
	return found;
}

static bool is_wanted(const Frame *f)
{
	const char *file = utf8_of(frame_code(f)->co_filename);
	const char *module = utf8_of(PyDict_GetItemString(f->f_globals, "__name__"));

	if (is_one_of(&filters.hidden, file))
		return false;
	if (filters.include.count && !is_one_of(&filters.include, file) &&
	    !is_one_of(&filters.include, module))
		return false;
	return !is_one_of(&filters.exclude, file) && !is_one_of(&filters.exclude, module);
}

COLD struct code *codes_learn(struct thread *t, Frame *f)
{
	PyCodeObject *code = frame_code(f);
	struct code *c = code_of(code);
	PyObject *type, *value, *traceback;

	if (!c && last_id < LARGEST_ID) {
		c = calloc(1, sizeof(*c));
		if (c && PyUnstable_Code_SetExtra((PyObject *)code, code_index, c)) {
			PyErr_Clear();
			free(c);
			c = NULL;
		}
	}
	if (!c || last_id >= LARGEST_ID) {
		rec.shared->counters[PST_CALLS_NO_ID]++;
		return NULL;
	}
	/* An exception may be on its way into the frame. */
	PyErr_Fetch(&type, &value, &traceback);
	c->recording = rec.recording;
	c->id = ++last_id;
	c->generator = code->co_flags & (CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR);
	c->init = false;
	c->mode = c->generator ? CODE_GENERATOR : CODE_RECORDED;
	if (is_wanted(f))
		put_code(t, c, code);
	else
		c->mode = CODE_SKIPPED;
	PyErr_Restore(type, value, traceback);
	return c;
}
