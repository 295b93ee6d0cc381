/* SPDX-License-Identifier: MIT */
#include "limits.h"

enum {
	WINDOW_US = 5000,  /* a budget is looked at over at least as much time */
	LOOK_CALLS = 1024, /* and when as many calls have been paid for */
};

struct limits limits;

static struct {
	uint64_t since; /* ticks */
	uint64_t spent, passed, c_spent;
} window;

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

static void begin_window(uint64_t now)
{
	window.since = now;
	window.spent = limits.spent;
	window.passed = limits.passed;
	window.c_spent = limits.c_spent;
}

void limits_begin(void)
{
	limits.spent = limits.passed = limits.c_spent = 0;
	limits.c_stopped = false;
	limits.look_at = limits.budget > 0 ? LOOK_CALLS * limits.call_ticks : UINT64_MAX;
	begin_window(ticks_now());
}

static void set_mode(struct thread *t, struct code *c, enum code_mode mode)
{
	c->mode = mode;
	recorder_reserve(t, 6); /* a whole time may come before */
	put_other(t, mode == CODE_COUNTED ? PST_WORD_DEMOTE : PST_WORD_PROMOTE, 0);
	t->others++;
	put(t, c->id);
}

static bool can_be_demoted(const struct code *c)
{
	return c->recording == rec.recording && c->mode <= CODE_GENERATOR && c->id < PST_COUNTED;
}

/* Count those functions only that were called most, to save so many ticks; false: there is none. */
static bool demote(struct thread *t, double ticks)
{
	bool done = false;

	while (ticks > 0) {
		uint32_t most = 1;

		for (struct code *c = codes; c; c = c->next)
			if (can_be_demoted(c) && c->calls > most)
				most = c->calls;
		if (most == 1)
			return done;
		for (struct code *c = codes; c; c = c->next)
			if (can_be_demoted(c) && c->calls > most / 2) {
				ticks -= (double)c->calls * (double)limits.call_ticks;
				set_mode(t, c, CODE_COUNTED);
			}
		done = true;
	}
	return done;
}

COLD void limits_look(struct thread *t)
{
	uint64_t now = ticks_now();
	double elapsed = (double)(now - window.since);

	limits.look_at = limits.spent + LOOK_CALLS * limits.call_ticks;
	if (!(limits.budget > 0) || elapsed < WINDOW_US * limits_ticks_per_us())
		return;
	double spent = (double)(limits.spent - window.spent);
	double of_c = (double)(limits.c_spent - window.c_spent);
	double passed = (double)(limits.passed - window.passed);
	double allowed = limits.budget * elapsed;

	if (spent > allowed && of_c > spent / 2 && !limits.c_stopped) {
		rec.shared->counters[PST_CALLS_C_STOPPED] = 1;
		limits.c_stopped = true;
	} else if (spent > allowed && (passed > allowed || !demote(t, spent - allowed))) {
		rec.shared->counters[PST_CALLS_STOPPED] = 1;
		recorder_stop();
		return;
	}
	for (struct code *c = codes; c; c = c->next)
		c->calls = 0;
	begin_window(now);
}
