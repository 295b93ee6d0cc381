/* SPDX-License-Identifier: MIT */
/*
 * Code objects: each has an id of its own, kept in the code object itself (PEP 523's
 * co_extra), so that it goes with it when it is freed and its address used again.
 * What becomes of its calls is decided once, when it is first seen in a recording.
 */
#ifndef PYSTACK_CODES_H
#define PYSTACK_CODES_H

#include "recorder.h"

enum code_mode {
	CODE_RECORDED,
	CODE_GENERATOR, /* recorded; its first evaluation makes the generator */
	CODE_SKIPPED,   /* neither recorded nor counted */
	CODE_COUNTED,   /* counted only */
};

/* Where a function's file belongs; without such places, all code is looked at. */
enum code_place {
	PLACE_OTHER,   /* the code that is looked at, or what that has called */
	PLACE_LIBRARY, /* whoever's its caller is; without one, that code's */
	PLACE_OUTSIDE, /* whoever's its caller is; without one, nobody's */
	PLACE_SERVES,  /* whoever's its caller is; without one, what runs the code */
	PLACE_RUNS,    /* what runs the code, whoever calls it */
};

struct code {
	uint32_t recording; /* the one that what follows belongs to */
	uint32_t id;
	uint8_t mode;
	uint8_t place;                /* enum code_place */
	bool generator;               /* whatever its mode is */
	bool init;                    /* some class's __init__, as far as is known */
	bool alias;                   /* a class's __init__ under another name, for ever */
	bool unwatched;               /* sys.monitoring tells no more of its calls */
	bool outside;                 /* of the files that run what is looked at */
	uint32_t calls;               /* since the budget was looked at */
	struct code *previous, *next; /* all that there are */
};

/* Patterns that choose what is recorded: globs of paths or of modules' names. */
struct patterns {
	char **globs;
	size_t count;
};

struct filters {
	struct patterns include; /* none: everything */
	struct patterns exclude;
	struct patterns hidden;    /* folders, whose own files are never recorded */
	struct patterns outside;   /* what runs the code that is looked at: it has no depth */
	struct patterns uncounted; /* nor are these files' short calls counted ... */
	struct patterns serving;   /* ... nor those of these, unless the code calls them */
	struct patterns library;   /* nor those of these, if one of those calls them */
};

extern struct filters filters;
extern struct code *codes;
extern Py_ssize_t code_index;

/* Ask the interpreter for a place in its code objects; -1 with an exception. */
int codes_init(void);
/* Ids begin anew. */
void codes_begin(void);
/* What is kept for a code object, made if need be; NULL: there is no memory. */
struct code *codes_mark(PyCodeObject *code);
/* Name a code object, and decide what becomes of its calls; NULL: it has no id. */
struct code *codes_learn(struct thread *t, Frame *f);

/* The same for a C function, without asking it for anything; NULL: it is no such function. */
struct code *codes_of_function(struct thread *t, PyObject *callable);

static inline struct code *code_of(const PyCodeObject *code)
{
	const struct code_extras *extras = code->co_extra;

	if (UNLIKELY(!extras || extras->size <= code_index))
		return NULL;
	return extras->extras[code_index];
}

#endif
