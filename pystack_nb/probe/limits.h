/* SPDX-License-Identifier: MIT */
/* What is recorded less than whole, on request: depth, short calls, a budget of time. */
#ifndef PYSTACK_LIMITS_H
#define PYSTACK_LIMITS_H

#include "codes.h"

struct limits {
	uint32_t depth;     /* calls deeper than this are not recorded; 0: none */
	uint64_t min_ticks; /* shorter calls are counted only */
	double budget;      /* ticks that recording may cost, for each tick; 0: any */
	bool c_stopped;     /* C functions are not recorded any more */
	/* Ticks that each costs; 0 without a budget. */
	uint64_t call_ticks;   /* a recorded call, also one that is taken back for being short */
	uint64_t pass_ticks;   /* a call that only goes through the evaluator */
	uint64_t c_call_ticks; /* a call that is told by sys.monitoring or by the profile hook */
	/* What it has cost so far. */
	uint64_t spent;   /* all of it */
	uint64_t passed;  /* in calls that were not recorded */
	uint64_t c_spent; /* in calls told */
	uint64_t look_at; /* the budget is looked at when that is spent */
};

extern struct limits limits;

static inline bool limits_any(void)
{
	return limits.depth || limits.min_ticks || limits.budget > 0;
}

/* The recorded calls around what a level calls; a C function that the code outside calls has none.
 */
static inline uint32_t limits_around(const struct level *l)
{
	return l->depth + (l->depth && l->c_calls);
}

/* The depth of a recorded call inside calls of the depth `around`. */
static inline uint32_t limits_depth(const struct code *c, uint32_t around)
{
	return around || !c->outside ? around + 1 : 0;
}

/* Whose a call is that a level makes. */
static inline enum whose limits_whose(const struct code *c, const struct level *around)
{
	if (LIKELY(c->place == PLACE_OTHER))
		return LOOKED_AT;
	if (c->place == PLACE_RUNS)
		return MACHINERYS;
	if (around->whose != NOBODYS)
		return around->whose;
	if (c->place == PLACE_LIBRARY)
		return LOOKED_AT;
	return c->place == PLACE_SERVES ? MACHINERYS : NOBODYS;
}

/* Whether a level's own call, and those that it makes of C functions, are counted when short. */
static inline bool limits_counts(const struct level *l)
{
	return l->whose == LOOKED_AT || !filters.uncounted.count;
}

/* Store that a call begins. */
static inline void limits_enter(struct thread *t, struct begun *b, enum pst_word kind, uint32_t id)
{
	b->sequence = t->batch->sequence;
	b->last = t->last;
	b->at = t->batch->count;
	b->id = id;
	b->counts = limits_counts(t->top);
	b->start = put_now(t, kind, id);
	if (limits.min_ticks && b->counts)
		go_inside(t, id);
}

/* Store that it ends, or count it. */
static inline void limits_leave(struct thread *t, const struct begun *b, enum pst_leave how)
{
	/* Reading the clock costs. */
	uint64_t now = limits.min_ticks ? ticks_now() : b->start;
	bool outermost = limits.min_ticks && b->counts && go_outside(t, b->id);

	if (now - b->start >= limits.min_ticks || b->id >= PST_COUNTED) {
		put_now(t, PST_LEAVE, how);
		return;
	}
	if (b->counts)
		count_call(t, b->id);
	if (outermost && !t->foreign)
		rec.counts[b->id].ticks += now - b->start;
	if (t->batch->sequence == b->sequence && t->batch->count == b->at + 1) {
		t->batch->count = b->at; /* nothing came after its beginning */
		t->last = b->last;
	} else {
		put_now(t, PST_LEAVE, PST_SHORT | how);
	}
}

/* End the C function whose end was not told: another profiler may have come in between. */
static inline void limits_leave_c_call(struct thread *t)
{
	if (t->top->c_calls)
		limits_leave(t, &t->top->of, PST_RETURNED);
	t->top->c_calls = false;
}

/* Ticks of the clock in a microsecond. */
double limits_ticks_per_us(void);
/* The recording begins. */
void limits_begin(void);
/* Is the budget kept? May end the recording. */
void limits_look(struct thread *t);

/* Recording has cost that much; may end the recording. */
static inline void limits_spend(struct thread *t, uint64_t ticks)
{
	limits.spent += ticks;
	if (UNLIKELY(limits.spent >= limits.look_at))
		limits_look(t);
}

#endif
