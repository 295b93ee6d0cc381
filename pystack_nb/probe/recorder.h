/* SPDX-License-Identifier: MIT */
/*
 * Where events go: a batch for each thread in the shared memory, and from there, when it
 * is full, through the probe's site or to a file.  The structures are those of
 * bpf/pystack_time.h.
 *
 * Everything here runs with the GIL, but for the end of a thread: that may come without it, and
 * holds the recorder's lock.  So what it shares with others (the threads' list, which batches are
 * in use, the in-process source's file, the count of events) is touched under the lock only; and
 * what it but reads (whether, and how, calls are recorded) changes under both.  Nobody
 * waits with the lock: new threads and a fork need it.
 */
#ifndef PYSTACK_RECORDER_H
#define PYSTACK_RECORDER_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>
#include <x86intrin.h>

#include "frames.h"
#include "pystack_time.h"

#define LIKELY(x)   __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)
#define COLD        __attribute__((noinline, cold))

enum {
	WORDS_LEFT = 4,       /* a batch is full when it has room for no more than these */
	WHOLE_TIME = 1 << 30, /* ticks after which an event carries the whole counter */
};

/* In thread.quiet: until code of one file is entered.  The rest counts recorder_hush(). */
#define WAITING 0x80000000u

/* A call that has begun, for what becomes of it when it was short. */
struct begun {
	uint64_t start, last; /* when, and the newest time stored before */
	uint64_t sequence;    /* of the batch that has its beginning */
	uint32_t at;          /* which word of it */
	uint32_t id;
	bool counts; /* when it is short */
};

/* Who makes a call, for the code that is looked at. */
enum whose {
	NOBODYS,   /* not known, or what carries that code */
	LOOKED_AT, /* that code's, or called by it */
	MACHINERYS /* of what runs that code */
};

/* An evaluation that is on a thread's stack, recorded or not. */
struct level {
	Frame *frame;
	uint32_t depth;  /* recorded calls around, itself included; with limits alone */
	uint8_t whose;   /* enum whose; with limits alone */
	bool c_calls;    /* it has called a C function, which has not returned */
	bool monitored;  /* its end comes from sys.monitoring, not from the evaluator */
	bool entered;    /* monitored: its beginning is in the recording */
	uint64_t start;  /* monitored: when that was */
	struct begun of; /* the C function */
};

/* The levels of one stack: the thread's own, or a greenlet's. */
struct stack {
	struct level *levels; /* levels[0] stands for what was there before the recording */
	struct level *limit;
	struct level *top; /* of a stack that is not in use now */
	uint32_t number;   /* operand of PST_WORD_SWITCH */
	struct stack *next;
};

struct thread {
	union {
		struct {
			uint32_t recording; /* the one that all below belongs to */
			uint32_t quiet;     /* 0, or calls here are neither stored nor counted */
		};
		uint64_t loud_in; /* both at once: the recording of a thread that is not quiet */
	};
	struct level *top;
	struct level *limit;
	struct pst_batch *batch;
	uint32_t others;         /* words in it that are no events */
	uint64_t last;           /* the newest time stored */
	uintptr_t stack_low;     /* a frame below this goes on on another stack */
	size_t stack_left;       /* bytes of the stack below that */
	uint32_t *inside;        /* open calls by code id; for the times of short ones alone */
	struct segment *segment; /* the stack that it is on, if that is the probe's own */
	struct segment *spare;   /* one for the next time */
	struct stack *stack;
	struct stack *stacks;
	uint32_t next_stack;
	uint64_t hooked;     /* 3.11: the thread state that the profile hook was set for */
	bool unhooked;       /* and that it is not there any more */
	bool refused;        /* and may not be set again */
	uint32_t without;    /* a recording that had no room for this thread */
	bool foreign;        /* its short calls are not counted: they are of what runs the code */
	const Frame *began;  /* the suspended coroutine that ended the thread's waiting */
	struct thread *next; /* all that there are */
};

struct recorder {
	uint32_t recording; /* 0: nothing is being recorded */
	uint32_t clock;     /* enum pst_clock_source */
	struct pst_shared *shared;
	struct pst_batch *batches;
	struct pst_count *counts;
	int spool;       /* in-process source: the file that batches are written to; else -1 */
	int error;       /* errno of the first write to it that failed */
	bool deep;       /* calls run unrecorded, a thread being near the end of its C stack */
	bool bound_kept; /* what was over max_events is gone */
	uint64_t events, max_events; /* that have left the batches; how many there may be */
	const uint32_t *foreign;     /* threads (native ids) that are, 0 behind the last */
};

extern struct recorder rec;
extern __thread struct thread *this_thread __attribute__((tls_model("initial-exec")));

static inline uint64_t monotonic_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + ts.tv_nsec;
}

static inline uint64_t ticks_now(void)
{
	return LIKELY(rec.clock == PST_TSC) ? __rdtsc() : monotonic_ns();
}

static inline void read_pair(struct pst_pair *pair)
{
	pair->before = ticks_now();
	pair->ns = monotonic_ns();
	pair->after = ticks_now();
}

/* Say in new shared memory what it is, for the collector; 0 or an errno. */
int recorder_prepare(int fd, uint32_t clock);
/* Map it and begin; 0 or an errno. `spool` is -1, or the in-process source's file. */
int recorder_start(int fd, int spool, uint64_t max_events);
/* No event is stored from here on. */
void recorder_stop(void);
/* Unmap; what the threads' batches hold has been taken. */
void recorder_close(void);
/* Keep no more events in the batches than there may be; after the stop. */
void recorder_keep_bound(void);
/* Append what is left to the in-process source's file. */
void recorder_write_rest(void);
/* This process has been forked. */
void recorder_count_fork(void);
/* This process is a forked copy: let go of the parent's memory. */
void recorder_forget(void);
/* The calling thread's state in this recording, or NULL: there is no batch for it. */
struct thread *recorder_attach(void);
/* 1: what the calling thread calls is not recorded; -1: take one of these back, false if none. */
bool recorder_hush(int by);
/* Send the batch off and begin it anew. */
void recorder_flush(struct thread *t);
/* Make room for `words` that must stand together. */
void recorder_reserve(struct thread *t, uint32_t words);
/* Store the whole counter, because the last time is too far away. */
uint64_t recorder_whole_time(struct thread *t, uint64_t now);
/* Have the thread's `inside`; false: there is no memory. */
bool recorder_count_inside(struct thread *t);
/* More levels on the stack in use; false: there is no memory, and the thread is left out. */
bool recorder_grow(struct thread *t);
/* Go on with a stack that has no open call, made if need be; false: the same. */
bool recorder_new_stack(struct thread *t);
/* All threads' calls run unrecorded from here on, or no more. */
void recorder_gap(enum pst_other kind);
/* Go on with a stack of this thread. */
void recorder_switch(struct thread *t, struct stack *s);

static inline void put(struct thread *t, uint64_t word)
{
	struct pst_batch *b = t->batch;
	uint32_t n = b->count;

	b->words[n] = word;
	b->count = n + 1;
	if (UNLIKELY(n + 1 >= PST_BATCH_WORDS - WORDS_LEFT))
		recorder_flush(t);
}

/* Store an event that happens now; its time. */
static inline uint64_t put_now(struct thread *t, enum pst_word kind, uint32_t operand)
{
	uint64_t now = ticks_now();

	/* Also when it is less: processors may differ by some ticks. */
	if (UNLIKELY(now - t->last > WHOLE_TIME))
		now = recorder_whole_time(t, now);
	t->last = now;
	put(t, (uint64_t)kind << PST_KIND_SHIFT | (uint64_t)operand << PST_TIME_BITS |
		       (now & ((1ull << PST_TIME_BITS) - 1)));
	return now;
}

/* A call that leaves no event. */
static inline void count_call(const struct thread *t, uint32_t id)
{
	if (id < PST_COUNTED && !t->foreign)
		rec.counts[id].calls++;
}

static inline void go_inside(struct thread *t, uint32_t id)
{
	if (id < PST_COUNTED && (t->inside || recorder_count_inside(t)))
		t->inside[id]++;
}

/* A call ends; whether it is inside no other one of the same function. */
static inline bool go_outside(struct thread *t, uint32_t id)
{
	return id < PST_COUNTED && t->inside && t->inside[id] && --t->inside[id] == 0;
}

static inline void put_other(struct thread *t, enum pst_other kind, uint32_t argument)
{
	t->others++;
	put_now(t, PST_OTHER, kind | argument << 4);
}

#endif
