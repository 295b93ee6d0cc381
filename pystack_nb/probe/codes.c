/* SPDX-License-Identifier: MIT */
#include "codes.h"

#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

enum {
	LARGEST_ID = (1 << PST_OPERAND_BITS) - 1,
	TEXT_PART = 4000, /* bytes of a file's or a function's name */
};

#define ELLIPSIS "\xe2\x80\xa6" /* behind a text that was cut */

struct filters filters;
struct code *codes;
Py_ssize_t code_index = -1;

static uint32_t last_id;

#if PY_VERSION_HEX < 0x030C0000
#define PyUnstable_Eval_RequestCodeExtraIndex _PyEval_RequestCodeExtraIndex
#define PyUnstable_Code_SetExtra              _PyCode_SetExtra
#endif

static struct code *new_code(void)
{
	struct code *c = calloc(1, sizeof(*c));

	if (!c)
		return NULL;
	c->next = codes;
	if (codes)
		codes->previous = c;
	codes = c;
	return c;
}

/* Also called by the interpreter, when a code object is freed. */
static void free_code(void *freed)
{
	struct code *c = freed;

	if (!c)
		return;
	if (c->next)
		c->next->previous = c->previous;
	if (c->previous)
		c->previous->next = c->next;
	else
		codes = c->next;
	free(c);
}

int codes_init(void)
{
	code_index = PyUnstable_Eval_RequestCodeExtraIndex(free_code);
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
	bool whole = size <= TEXT_PART;

	if (!whole) {
		size = TEXT_PART;
		while ((from[size] & 0xc0) == 0x80) /* not within a character */
			size--;
	}
	for (Py_ssize_t i = 0; i < size; i++)
		to[i] = from[i] ? from[i] : ' '; /* a NUL ends the text */
	if (!whole) {
		memcpy(to + size, ELLIPSIS, sizeof(ELLIPSIS) - 1);
		size += sizeof(ELLIPSIS) - 1;
	}
	to[size] = 0;
	Py_XDECREF(bytes);
	return size + 1;
}

static void put_code(struct thread *t, const struct code *c, PyObject *file, PyObject *name,
		     int line, bool is_c)
{
	/* Not on the stack, which may be a small one. */
	union {
		char text[2 * TEXT_PART + 64];
		uint64_t words[TEXT_PART / 4 + 8];
	} *u = malloc(sizeof(*u));

	if (!u)
		return; /* it has no name then, which is told */
	size_t size = copy_text(u->text, file);

	size += copy_text(u->text + size, name);
	size += sprintf(u->text + size, "%d", line) + 1;
	while (size % 8)
		u->text[size++] = 0;
	recorder_reserve(t, 1 + size / 8);
	t->others += 1 + size / 8;
	put(t, (uint64_t)PST_OTHER << PST_KIND_SHIFT |
		       (uint64_t)(PST_WORD_CODE | size / 8 << 4) << PST_TIME_BITS |
		       (uint64_t)is_c << (PST_TIME_BITS - 1) | c->id);
	for (size_t i = 0; i < size / 8; i++)
		put(t, u->words[i]);
	free(u);
}

static bool is_one_of(const struct patterns *patterns, const char *name)
{
	for (size_t i = 0; name && i < patterns->count; i++)
		if (!fnmatch(patterns->globs[i], name, FNM_NOESCAPE)) /* as Python's */
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

static bool is_chosen(const char *file, const char *module)
{
	if (filters.include.count && !is_one_of(&filters.include, file) &&
	    !is_one_of(&filters.include, module))
		return false;
	return !is_one_of(&filters.exclude, file) && !is_one_of(&filters.exclude, module);
}

static bool is_wanted(const Frame *f)
{
	const char *file = utf8_of(frame_code(f)->co_filename);
	const char *module = utf8_of(PyDict_GetItemString(f->f_globals, "__name__"));

	return !is_one_of(&filters.hidden, file) && is_chosen(file, module);
}

static enum code_place place_of(const struct code *c, const char *file)
{
	if (is_one_of(&filters.uncounted, file))
		return PLACE_RUNS;
	if (is_one_of(&filters.serving, file))
		return PLACE_SERVES;
	if (c->outside)
		return PLACE_OUTSIDE;
	/* Packages may be installed into the library's folder. */
	bool installed =
		file && (strstr(file, "/site-packages/") || strstr(file, "/dist-packages/"));

	return !installed && is_one_of(&filters.library, file) ? PLACE_LIBRARY : PLACE_OTHER;
}

/* Give `c` an id in this recording; false: none is left. */
static bool give_id(struct code *c)
{
	if (!c || last_id >= LARGEST_ID) {
		rec.shared->counters[PST_CALLS_NO_ID]++;
		return false;
	}
	c->recording = rec.recording;
	c->id = ++last_id;
	c->calls = 0;
	return true;
}

struct code *codes_mark(PyCodeObject *code)
{
	struct code *c = code_of(code);

	if (c)
		return c;
	c = new_code();
	if (c && PyUnstable_Code_SetExtra((PyObject *)code, code_index, c)) {
		PyErr_Clear();
		free_code(c);
		c = NULL;
	}
	return c;
}

COLD struct code *codes_learn(struct thread *t, Frame *f)
{
	PyCodeObject *code = frame_code(f);
	struct code *c;
	PyObject *type, *value, *traceback;

	/* An exception may be on its way into the frame. */
	PyErr_Fetch(&type, &value, &traceback);
	c = codes_mark(code);
	if (give_id(c)) {
		c->init = false;
		c->unwatched = false;
		c->generator = code->co_flags & (CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR);
		c->outside = filters.outside.count &&
			     is_one_of(&filters.outside, utf8_of(code->co_filename));
		c->place = filters.uncounted.count ? place_of(c, utf8_of(code->co_filename))
						   : PLACE_OTHER;
		c->mode = c->generator ? CODE_GENERATOR : CODE_RECORDED;
		if (is_wanted(f))
			put_code(t, c, code->co_filename, code->co_qualname, code->co_firstlineno,
				 false);
		else
			c->mode = CODE_SKIPPED;
	} else {
		c = NULL;
	}
	PyErr_Restore(type, value, traceback);
	return c;
}

/*
 * C functions: an open-addressed table, never more than half full.  One definition may serve
 * several types, as that of __new__ does; and its memory, as that of a type, may be freed and
 * used again, so that what the name was made of is kept and compared.
 */
static struct {
	struct place {
		const PyMethodDef *definition;
		const void *owner; /* the type, or what the function says of its module */
		char *name, *owner_name;
		struct code *code;
	} *places;
	size_t size, used;
} functions;

/* What a callable's name is made of. */
struct function {
	const PyMethodDef *definition;
	PyTypeObject *owner; /* of a method that belongs to each type on its own */
	PyTypeObject *type;  /* of the object that it is bound to, or whose method it is */
	PyObject *module;    /* any object */
	PyObject *self;
};

static bool describe(struct function *f, PyObject *callable)
{
	*f = (struct function){0};
	if (PyCFunction_Check(callable)) {
		f->definition = ((PyCFunctionObject *)callable)->m_ml;
		f->module = ((PyCFunctionObject *)callable)->m_module;
		f->self = ((PyCFunctionObject *)callable)->m_self;
		if (f->self && PyType_Check(f->self))
			f->owner = f->type = (PyTypeObject *)f->self;
		else if (f->self && !PyModule_Check(f->self))
			f->type = Py_TYPE(f->self);
		return true;
	}
	if (!Py_IS_TYPE(callable, &PyMethodDescr_Type))
		return false;
	f->definition = ((PyMethodDescrObject *)callable)->d_method;
	f->type = PyDescr_TYPE(callable);
	return true;
}

static const void *owner_of(const struct function *f)
{
	return f->owner ? (const void *)f->owner : f->module;
}

static struct place *find_place(const PyMethodDef *definition, const void *owner)
{
	size_t at =
		(((uintptr_t)definition >> 4) + ((uintptr_t)owner >> 3)) * 0x9e3779b97f4a7c15u >>
		20;

	for (;; at++) {
		struct place *place = &functions.places[at & (functions.size - 1)];

		if (!place->definition ||
		    (place->definition == definition && place->owner == owner))
			return place;
	}
}

static bool make_room(void)
{
	size_t size = functions.size;
	struct place *before = functions.places;

	if (functions.used * 2 < size)
		return true;
	functions.places = calloc(size ? 2 * size : 1024, sizeof(*before));
	if (!functions.places) {
		functions.places = before;
		return false;
	}
	functions.size = size ? 2 * size : 1024;
	for (size_t i = 0; i < size; i++)
		if (before[i].definition)
			*find_place(before[i].definition, before[i].owner) = before[i];
	free(before);
	return true;
}

/* Whether the place is still that of this function. */
static bool is_same(const struct place *place, const struct function *f)
{
	return place->name && !strcmp(place->name, f->definition->ml_name) &&
	       (!f->owner || (place->owner_name && !strcmp(place->owner_name, f->owner->tp_name)));
}

static bool has_method(const PyTypeObject *type, const PyMethodDef *definition)
{
	for (const PyMethodDef *m = type->tp_methods; m && m->ml_name; m++)
		if (m == definition)
			return true;
	return false;
}

/* The type that a method belongs to; NULL: it is bound to something that tells nothing. */
static PyTypeObject *definer(const struct function *f)
{
	PyObject *bases = f->type && !f->owner ? f->type->tp_mro : NULL;

	if (f->owner || !f->self)
		return f->type;
	for (Py_ssize_t i = 0; bases && i < PyTuple_GET_SIZE(bases); i++) {
		PyTypeObject *base = (PyTypeObject *)PyTuple_GET_ITEM(bases, i);

		if (PyType_Check(base) && has_method(base, f->definition))
			return base;
	}
	return f->module ? NULL : f->type;
}

static PyObject *dict_of(PyTypeObject *type)
{
#if PY_VERSION_HEX >= 0x030C0000
	return PyType_GetDict(type);
#else
	return Py_XNewRef(type->tp_dict);
#endif
}

/* The names of a type's module and of a method of it; no attribute is asked for. */
static void name_method(PyTypeObject *type, const char *method, PyObject **module, PyObject **name)
{
	const char *whole = type->tp_name, *dot = strrchr(whole, '.');

	if (type->tp_flags & Py_TPFLAGS_HEAPTYPE) {
		PyObject *dict = dict_of(type);

		*module = Py_XNewRef(dict ? PyDict_GetItemString(dict, "__module__") : NULL);
		*name = PyUnicode_FromFormat("%U.%s", ((PyHeapTypeObject *)type)->ht_qualname,
					     method);
		Py_XDECREF(dict);
		return;
	}
	*module = dot ? PyUnicode_FromStringAndSize(whole, dot - whole)
		      : PyUnicode_FromString("builtins");
	*name = PyUnicode_FromFormat("%s.%s", dot ? dot + 1 : whole, method);
}

/* Name a function, and tell whether it is wanted. */
static bool name_function(struct thread *t, struct code *c, const struct function *f)
{
	PyTypeObject *type = definer(f);
	PyObject *module = NULL, *name = NULL, *file;
	bool wanted = true;

	if (type) {
		name_method(type, f->definition->ml_name, &module, &name);
	} else {
		name = PyUnicode_FromString(f->definition->ml_name);
		if (f->module && PyUnicode_Check(f->module))
			module = Py_NewRef(f->module);
		else if (f->self && PyModule_CheckExact(f->self))
			module = PyModule_GetNameObject(f->self);
	}
	PyErr_Clear();
	file = module && PyUnicode_Check(module) ? PyUnicode_FromFormat("<%U>", module)
						 : PyUnicode_FromString("<built-in>");
	if (file && name) {
		wanted = is_chosen(utf8_of(file), utf8_of(module));
		if (wanted)
			put_code(t, c, file, name, 0, true);
	}
	PyErr_Clear();
	Py_XDECREF(file);
	Py_XDECREF(module);
	Py_XDECREF(name);
	return wanted;
}

/* Take the place for a function, in which another one may have been. */
static bool settle(struct place *place, const struct function *f)
{
	if (!place->code) {
		place->code = new_code();
		if (!place->code)
			return false;
		place->definition = f->definition;
		place->owner = owner_of(f);
		functions.used++;
	}
	free(place->name);
	free(place->owner_name);
	place->name = strdup(f->definition->ml_name);
	place->owner_name = f->owner ? strdup(f->owner->tp_name) : NULL;
	place->code->recording = 0;
	return true;
}

struct code *codes_of_function(struct thread *t, PyObject *callable)
{
	struct function f;

	if (!describe(&f, callable) || !make_room())
		return NULL;
	struct place *place = find_place(f.definition, owner_of(&f));

	if (UNLIKELY(!place->code || !is_same(place, &f)) && !settle(place, &f))
		return NULL;
	struct code *c = place->code;

	if (c->recording != rec.recording) {
		PyObject *type, *value, *traceback;

		PyErr_Fetch(&type, &value, &traceback);
		if (give_id(c))
			c->mode = name_function(t, c, &f) ? CODE_RECORDED : CODE_SKIPPED;
		PyErr_Restore(type, value, traceback);
	}
	return c->recording == rec.recording ? c : NULL;
}
