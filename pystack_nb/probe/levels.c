/* SPDX-License-Identifier: MIT */
#include "levels.h"

/*
 * The innermost evaluation known of this thread was not called from where the thread is.
 * Either evaluations lie in between that the probe did not see, or a finished frame is
 * being cleared, or the thread is on another stack (greenlets).
 */
COLD bool levels_find(struct thread *t, Frame *caller)
{
	if (!t->batch)
		return false;
	for (Frame *f = caller; f; f = f->previous) {
		for (struct level *l = t->top; l >= t->stack->levels && l > t->top - 2; l--)
			if (l->frame == f)
				return true;
		for (struct stack *s = t->stacks; s; s = s->next)
			if (s != t->stack && s->top != s->levels && s->top->frame == f) {
				recorder_switch(t, s);
				return true;
			}
	}
	/* A finished one that no other evaluation is around. */
	if (t->top != t->stack->levels && !t->top->monitored && is_ending(t->top->frame) &&
	    t->top->frame->previous == caller)
		return true;
	if (t->top != t->stack->levels && !recorder_new_stack(t))
		return false;
	t->top->frame = caller;
	return true;
}

/* An evaluation ends that is not the innermost one known: go on with its stack. */
COLD bool levels_find_own(struct thread *t, const Frame *f)
{
	for (struct stack *s = t->stacks; s; s = s->next)
		if (s != t->stack && s->top != s->levels && s->top->frame == f) {
			recorder_switch(t, s);
			return true;
		}
	return false;
}
