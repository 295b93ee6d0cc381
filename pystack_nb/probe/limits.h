/* SPDX-License-Identifier: MIT */
/* What is recorded less than whole, on request: depth, short calls, a budget of time. */
#ifndef PYSTACK_LIMITS_H
#define PYSTACK_LIMITS_H

#include "codes.h"

struct limits {
	uint32_t depth;     /* calls deeper than this are not recorded; 0: none */
	uint64_t min_ticks; /* shorter calls are counted only */
	double budget;      /* ticks that recording may cost, for each tick; 0: any */
	double call_ticks;  /* what a recorded call costs */
};

extern struct limits limits;
extern uint64_t limits_seen; /* rec.events when they were looked at last */

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
/* A call was counted that is not recorded; may end the recording. */
void limits_counted(struct thread *t, struct code *c);
/* Events have left the batches: is the budget kept? May end the recording. */
void limits_look(struct thread *t);

#endif
