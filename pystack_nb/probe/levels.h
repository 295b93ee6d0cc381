/* SPDX-License-Identifier: MIT */
/* The evaluations that are on each stack of a thread. */
#ifndef PYSTACK_LEVELS_H
#define PYSTACK_LEVELS_H

#include "recorder.h"

/*
 * Find the stack that a thread is on; its innermost evaluation known is not the caller.  False:
 * there is no memory, and the thread is left out of the recording.
 */
bool levels_find(struct thread *t, Frame *caller);
/* Go on with the stack on which `f` is the innermost evaluation; false: there is none. */
bool levels_find_own(struct thread *t, const Frame *f);

/*
 * An evaluation begins; `caller` is the thread's innermost frame outside of it.  False: the thread
 * is left out of the recording.
 */
static inline bool push(struct thread *t, Frame *caller, Frame *f)
{
	if (UNLIKELY(caller != t->top->frame) && !levels_find(t, caller))
		return false;
	if (UNLIKELY(t->top + 1 == t->limit) && !recorder_grow(t))
		return false;
	t->top++;
	t->top->frame = f;
	t->top->c_calls = 0;
	t->top->monitored = false;
	return true;
}

/* An evaluation ends; whether that belongs into the recording. */
static inline bool pop(struct thread *t, uint32_t recording, const Frame *f)
{
	if (UNLIKELY(rec.recording != recording || t->recording != recording))
		return false;
	if (UNLIKELY(t->top->frame != f) && !levels_find_own(t, f))
		return false;
	t->top--;
	return true;
}

#endif
