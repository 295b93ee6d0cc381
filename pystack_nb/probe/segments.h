/* SPDX-License-Identifier: MIT */
/*
 * Recursion from Python to Python takes C stack while it is recorded, which it does not
 * otherwise.  Where a thread's own stack comes near its end, it goes on on another one.
 */
#ifndef PYSTACK_SEGMENTS_H
#define PYSTACK_SEGMENTS_H

#include "recorder.h"

enum segment_use {
	SEGMENT_RECORDED, /* calls are recorded on it */
	SEGMENT_GAP,      /* calls run unrecorded on it: there can't be one more of the former */
};

/* A C stack of the probe's own; it begins with this. */
struct segment {
	struct segment *outer; /* the thread was on that one before; NULL: on its own stack */
	uintptr_t outer_low;
	size_t outer_left;
	size_t size;
	uint32_t number; /* of those that the thread is on, from 1 */
};

/*
 * Have the next one for a thread; false: it must stay where it is, as there is no memory, or
 * greenlets are in use, which move a thread's own stack about.
 */
bool segments_enter(struct thread *t, enum segment_use use);
/* Call a function on the one just entered. */
void segments_call(const struct thread *t, void (*function)(void *), void *argument);
/* Back from it. */
void segments_leave(struct thread *t);
/* What is left of the stack that a thread is on; false: it is on its own. */
bool segments_find(struct thread *t);
/* Let go of what is kept for the next time; with `all`, of those in use, whose thread has ended. */
void segments_free(struct thread *t, bool all);

#endif
