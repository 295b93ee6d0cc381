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

/* The depth of a recorded call inside calls of the depth `around`. */
static inline uint32_t limits_depth(const struct code *c, uint32_t around)
{
	return around || !c->outside ? around + 1 : 0;
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
