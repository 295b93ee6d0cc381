/* SPDX-License-Identifier: MIT */
#include "limits.h"

#include "evaluate.h"

enum {
	WINDOW_US = 5000,    /* a budget is looked at over at least as much time */
	FEWEST_CALLS = 200,  /* a function with less in a window is not what costs */
	COUNTED_LOOK = 4096, /* counted calls between two looks */
};

/* A call that is only counted passes the evaluator as well: measured, about half. */
static const double COUNTED_COST = 0.5;

struct limits limits;
uint64_t limits_seen;

static struct {
	uint64_t since;  /* ticks */
	uint64_t events; /* rec.events then */
	uint64_t counted;
} window;
static uint64_t counted;

double limits_ticks_per_us(void)
{
	static double known;
	uint64_t ns = monotonic_ns(), ticks = ticks_now(), later;

	if (rec.clock == PST_MONOTONIC)
		return 1000;
	if (known > 0)
		return known;
	do
		later = monotonic_ns();
	while (later - ns < 1000000);
	return known = (double)(ticks_now() - ticks) * 1000 / (double)(later - ns);
}

void limits_begin(void)
{
	counted = 0;
	limits_seen = 0;
	window.since = ticks_now();
	window.events = 0;
	window.counted = 0;
}

static void set_mode(struct thread *t, struct code *c, enum code_mode mode)
{
	c->mode = mode;
	recorder_reserve(t, 6); /* a whole time may come before */
	put_other(t, mode == CODE_COUNTED ? PST_WORD_DEMOTE : PST_WORD_PROMOTE, 0);
	put(t, c->id);
}

/* Count the functions that were called most; false: there is none that is worth it. */
static bool demote(struct thread *t)
{
	uint32_t most = 0;

	for (struct code *c = codes; c; c = c->next)
		if (c->recording == rec.recording && c->mode <= CODE_GENERATOR && c->calls > most &&
		    c->id < PST_COUNTED)
			most = c->calls;
	if (most < FEWEST_CALLS)
		return false;
	for (struct code *c = codes; c; c = c->next)
		if (c->recording == rec.recording && c->mode <= CODE_GENERATOR &&
		    c->calls >= most / 2 && c->id < PST_COUNTED)
			set_mode(t, c, CODE_COUNTED);
	return true;
}

COLD void limits_look(struct thread *t)
{
	uint64_t now = ticks_now();
	double elapsed = (double)(now - window.since);

	limits_seen = rec.events;
	if (!(limits.budget > 0) || elapsed < WINDOW_US * limits_ticks_per_us())
		return;
	double calls = (double)(rec.events - window.events) / 2;
	double passed = (double)(counted - window.counted) * COUNTED_COST;
	double allowed = limits.budget * elapsed;

	if ((calls + passed) * limits.call_ticks > allowed && !demote(t) &&
	    passed * limits.call_ticks > allowed) {
		rec.shared->counters[PST_CALLS_STOPPED] = 1;
		recorder_stop();
		evaluate_remove();
		return;
	}
	for (struct code *c = codes; c; c = c->next)
		c->calls = 0;
	window.since = now;
	window.events = rec.events;
	window.counted = counted;
}

void limits_counted(struct thread *t, struct code *c)
{
	if (c->id < PST_COUNTED)
		rec.counts[c->id].calls++;
	if (++counted % COUNTED_LOOK == 0)
		limits_look(t);
}
