/* SPDX-License-Identifier: MIT */
/* What recorder.c, recorder_batches.c and recorder_spool.c have in common, for them alone. */
#ifndef PYSTACK_RECORDER_PARTS_H
#define PYSTACK_RECORDER_PARTS_H

#include "recorder.h"

#include <pthread.h>

/* What the end of a thread shares with the others: recorder.h says how. */
extern pthread_mutex_t recorder_lock;

void pystack_probe_site(struct pst_batch *batch);

static inline void begin_batch(struct thread *t)
{
	read_pair(&t->batch->pair);
	/* What is stored goes on from here, so that a reader needs nothing else. */
	t->last = t->batch->pair.after;
}

/* Send a batch off, by its own thread and under the lock; false: the recording is to end. */
bool recorder_send(struct thread *t);
/* Let the drain follow, rather than lose anything; without the lock, but for looking. */
void recorder_wait_for_drain(uint32_t recording);
/* A recording begins: the drain is waited for. */
void recorder_trust_drain(void);
/* Once recording has ended, take from a batch what was too much; under the lock. */
void recorder_keep_bound_of(struct thread *t);

/* Know the in-process source's file again, or -1 that there is none; under the lock. */
void recorder_know_spool(int fd);
/* Let go of it; under the lock. */
void recorder_close_spool(void);
/* Append a batch to it; under the lock. */
void recorder_write_batch(struct pst_batch *b, uint16_t flags);

#endif
