/* SPDX-License-Identifier: MIT */
/* A thread's batch, from its first word to where it goes when it is full. */
#define _GNU_SOURCE
#include "evaluate.h"
#include "recorder_parts.h"

#include <string.h>

enum {
	WAIT_NS = 50000,
	PATIENCE_NS = 1000000000, /* without any progress of the drain */
};

static uint64_t left_behind; /* what was drained when the drain was last given up */

static int64_t pending(uint64_t drained)
{
	return __atomic_load_n(&rec.shared->sent, __ATOMIC_RELAXED) - drained;
}

void recorder_trust_drain(void)
{
	left_behind = UINT64_MAX;
}

void recorder_wait_for_drain(uint32_t recording)
{
	const struct timespec pause = {.tv_nsec = WAIT_NS};
	uint64_t begun = monotonic_ns(), since = begun, now = begun, seen = UINT64_MAX;

	pthread_mutex_lock(&recorder_lock);
	/* Another thread may end the recording, also while this one ends. */
	while (rec.shared && rec.shared->recording == recording && rec.spool < 0) {
		uint64_t drained = __atomic_load_n(&rec.shared->drained, __ATOMIC_RELAXED);

		if (pending(drained) <= PST_PENDING_BATCHES)
			break;
		if (drained != seen)
			since = now;
		seen = drained;
		/* What stands still is waited for once, not for each batch. */
		if (drained == left_behind || now - since > PATIENCE_NS) {
			left_behind = drained;
			rec.shared->counters[PST_CALLS_GAVE_UP]++;
			break;
		}
		pthread_mutex_unlock(&recorder_lock);
		nanosleep(&pause, NULL);
		now = monotonic_ns();
		pthread_mutex_lock(&recorder_lock);
	}
	if (now != begun && rec.shared && rec.shared->recording == recording)
		rec.shared->counters[PST_CALLS_WAITED_NS] += now - begun;
	pthread_mutex_unlock(&recorder_lock);
}

/* Leave so many events of a batch, and what names code objects. */
static void cut(struct pst_batch *b, uint64_t events)
{
	uint32_t kept = 0, size;

	for (uint32_t at = 0; at < b->count; at += size) {
		uint64_t word = b->words[at];
		uint32_t operand = word >> PST_TIME_BITS & ((1u << PST_OPERAND_BITS) - 1);
		bool is_event = word >> PST_KIND_SHIFT != PST_OTHER, is_name = false;

		size = 1;
		if (!is_event)
			switch (operand & 15) {
			case PST_WORD_CODE:
				size += operand >> 4;
				is_name = true;
				break;
			case PST_WORD_TIME:
			case PST_WORD_DEMOTE:
			case PST_WORD_PROMOTE:
				size = 2;
			}
		if (!is_name && !events)
			continue;
		events -= is_event;
		memmove(&b->words[kept], &b->words[at], size * sizeof(word));
		kept += size;
	}
	b->count = kept;
}

/* Count the events of a thread's batch; false: it had too many, and was cut.  Under the lock. */
static bool keep_bound(struct thread *t)
{
	uint64_t count = t->batch->count - t->others, before = rec.events;

	rec.events += count;
	if (!rec.max_events || rec.events < rec.max_events)
		return true;
	cut(t->batch, before < rec.max_events ? rec.max_events - before : 0);
	rec.shared->counters[PST_CALLS_MAX_EVENTS] = 1;
	return false;
}

void recorder_keep_bound_of(struct thread *t)
{
	if (!rec.bound_kept && t->batch && t->recording == rec.shared->recording)
		keep_bound(t);
}

bool recorder_send(struct thread *t)
{
	struct pst_batch *b = t->batch;
	bool goes_on = keep_bound(t);

	t->others = 0;
	if (rec.spool >= 0) {
		recorder_write_batch(b, 0);
	} else {
		__atomic_fetch_add(&rec.shared->sent, 1, __ATOMIC_RELAXED);
		pystack_probe_site(b);
	}
	/* In this order: killed in between, it has a number that has come already. */
	__atomic_store_n(&b->count, 0, __ATOMIC_RELEASE);
	__atomic_store_n(&b->sequence, b->sequence + 1, __ATOMIC_RELEASE);
	return goes_on;
}

COLD void recorder_flush(struct thread *t)
{
	if (!t->batch->count)
		return;
	evaluate_look();
	pthread_mutex_lock(&recorder_lock);
	if (!recorder_send(t))
		rec.recording = 0;
	pthread_mutex_unlock(&recorder_lock);
	recorder_wait_for_drain(t->recording);
	begin_batch(t);
}

COLD void recorder_reserve(struct thread *t, uint32_t words)
{
	if (t->batch->count + words > PST_BATCH_WORDS - WORDS_LEFT)
		recorder_flush(t);
}

COLD uint64_t recorder_whole_time(struct thread *t, uint64_t now)
{
	if ((int64_t)(now - t->last) < 0)
		return t->last;
	recorder_reserve(t, 3);
	t->others += 2;
	put(t, (uint64_t)PST_OTHER << PST_KIND_SHIFT | (uint64_t)PST_WORD_TIME << PST_TIME_BITS);
	put(t, now);
	return now;
}
