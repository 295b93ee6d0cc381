/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "recorder.h"

#include "recorder_parts.h"
#include "segments.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	LEVELS = 32,
	LARGEST_STACK = (1 << (PST_OPERAND_BITS - 4)) - 1, /* operand of PST_WORD_SWITCH */
	NO_RECORDING = -1,
	/* Of its own C stack, a thread keeps as much for what C functions need. */
	STACK_MARGIN = 4 << 20,
	SMALL_STACK = 1 << 20,
};

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

struct recorder rec = {.spool = -1};
__thread struct thread *this_thread __attribute__((tls_model("initial-exec")));

static __thread uint32_t hushed __attribute__((tls_model("initial-exec")));

pthread_mutex_t recorder_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct thread *threads;
static uint32_t last_thread;
static bool out_of_memory; /* for the state of a thread */

/*
 * The probe's site.  The uprobe is attached to its first instruction, a five-byte nop,
 * which the kernel can turn into a call instead of a trap; rdi: the batch.
 */
__asm__(".pushsection .text\n"
	".globl pystack_probe_site\n"
	".type pystack_probe_site, @function\n"
	".p2align 5\n"
	"pystack_probe_site:\n"
	"	.byte 0x0f, 0x1f, 0x44, 0x00, 0x00\n"
	"	ret\n"
	".size pystack_probe_site, . - pystack_probe_site\n"
	".popsection\n");
static void free_stacks(struct thread *t)
{
	while (t->stacks) {
		struct stack *s = t->stacks;

		t->stacks = s->next;
		free(s->levels);
		free(s);
	}
}

static void free_thread(struct thread *t)
{
	free_stacks(t);
	free(t->inside);
	segments_free(t, true);
	free(t);
}

/* The end of a thread, after its last Python code and perhaps without the GIL. */
static void thread_ends(void *arg)
{
	struct thread *t = arg, **at = &threads;
	uint32_t recording = 0;

	pthread_mutex_lock(&recorder_lock);
	while (*at && *at != t)
		at = &(*at)->next;
	if (*at)
		*at = t->next;
	if (t->batch && t->recording == rec.recording && rec.recording) {
		recording = rec.recording;
		/* Over the bound, the next one who sends ends the recording. */
		if (t->batch->count)
			recorder_send(t);
		t->batch->thread = 0;
	} else {
		recorder_keep_bound_of(t);
	}
	pthread_mutex_unlock(&recorder_lock);
	if (recording)
		recorder_wait_for_drain(recording);
	/* Another library's destructor may yet run Python code here. */
	this_thread = NULL;
	free_thread(t);
}

static void make_key(void)
{
	pthread_key_create(&key, thread_ends);
}

int recorder_prepare(int fd, uint32_t clock)
{
	struct pst_shared head = {
		.magic = PST_SHARED_MAGIC,
		.format = PST_FORMAT,
		.clock = clock,
	};
	ssize_t n = pwrite(fd, &head, sizeof(head), 0);

	return n == sizeof(head) ? 0 : n < 0 ? errno : ENOSPC;
}

static bool all_there; /* the whole shared memory has its place, as it need not be made later */

/*
 * Give a part of the shared memory its place, on a disk or in memory, before it is touched: where
 * there is none, that would be the end of the process.  0 or an errno.
 */
static int make_room(const void *part, size_t size)
{
	if (all_there || !madvise((void *)part, size, MADV_POPULATE_WRITE))
		return 0;
	return errno == EFAULT ? ENOSPC : errno;
}

/* The same for what each recording has, or, before Linux 5.14, for all of it. */
static int make_first_room(const char *memory, int fd)
{
	all_there = false;

	int error = make_room(memory, PST_BATCHES_AT);

	if (error == EINVAL) {
		error = posix_fallocate(fd, 0, PST_SHARED_SIZE);
		all_there = !error;
		return error;
	}
	return error ? error : make_room(memory + PST_COUNTS_AT, PST_SHARED_SIZE - PST_COUNTS_AT);
}

int recorder_start(int fd, int spool, uint64_t max_events)
{
	static uint32_t recordings;
	void *memory = mmap(NULL, PST_SHARED_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	int error;

	if (memory == MAP_FAILED)
		return errno;
	error = make_first_room(memory, fd);
	if (error) {
		munmap(memory, PST_SHARED_SIZE);
		return error;
	}
	pthread_once(&once, make_key);
	pthread_mutex_lock(&recorder_lock);
	recorder_know_spool(spool);
	rec.shared = memory;
	rec.batches = (void *)((char *)memory + PST_BATCHES_AT);
	rec.counts = (void *)((char *)memory + PST_COUNTS_AT);
	rec.clock = rec.shared->clock;
	rec.events = 0;
	rec.max_events = max_events;
	rec.bound_kept = false;
	last_thread = 0;
	out_of_memory = false;
	recorder_trust_drain();
	rec.deep = false;
	rec.shared->recording = ++recordings ? recordings : ++recordings;
	read_pair(&rec.shared->start);
	rec.recording = recordings;
	pthread_mutex_unlock(&recorder_lock);
	return 0;
}

void recorder_stop(void)
{
	pthread_mutex_lock(&recorder_lock);
	rec.recording = 0;
	pthread_mutex_unlock(&recorder_lock);
}

void recorder_close(void)
{
	pthread_mutex_lock(&recorder_lock);
	for (struct thread *t = threads; t; t = t->next) {
		t->batch = NULL;
		segments_free(t, false);
	}
	if (rec.shared)
		munmap(rec.shared, PST_SHARED_SIZE);
	rec.shared = NULL;
	recorder_close_spool();
	pthread_mutex_unlock(&recorder_lock);
}

void recorder_count_fork(void)
{
	pthread_mutex_lock(&recorder_lock);
	if (rec.shared && rec.recording)
		rec.shared->counters[PST_CALLS_FORKS]++;
	pthread_mutex_unlock(&recorder_lock);
}

void recorder_forget(void)
{
	/*
	 * Where the kernel has turned the site's nop into a call, this copy has the call, but not
	 * what it leads to; without its own copy of the page it has the file's nop again.
	 */
	madvise((void *)((uintptr_t)pystack_probe_site & ~4095ul), 4096, MADV_DONTNEED);
	/* Whoever held the lock is not in this process; nor are the other threads. */
	pthread_mutex_init(&recorder_lock, NULL);
	rec.recording = 0;
	recorder_close();
}

/* A free batch, or NULL; under the lock. */
static struct pst_batch *take_batch(void)
{
	static uint32_t hint;

	for (uint32_t i = 0; i < PST_BATCHES; i++) {
		uint32_t n = (hint + i) % PST_BATCHES;

		if (n < rec.shared->used && rec.batches[n].thread)
			continue;
		if (n >= rec.shared->used) {
			n = rec.shared->used;
			if (make_room(&rec.batches[n], PST_BATCH_SIZE))
				continue; /* to those used before */
			rec.shared->used++;
		}
		hint = n + 1;
		return &rec.batches[n];
	}
	return NULL;
}

static void find_stack(struct thread *t)
{
	pthread_attr_t attributes;
	void *address;
	size_t size;

	if (segments_find(t))
		return;
	t->stack_low = t->stack_left = 0;
	if (pthread_getattr_np(pthread_self(), &attributes))
		return;
	if (!pthread_attr_getstack(&attributes, &address, &size)) {
		/* A C function needs the same of a small one. */
		t->stack_left = size < SMALL_STACK ? size / 4 * 3 : size / 2;
		if (t->stack_left > STACK_MARGIN)
			t->stack_left = STACK_MARGIN;
		t->stack_low = (uintptr_t)address + t->stack_left;
	}
	pthread_attr_destroy(&attributes);
}

static struct stack *new_stack(struct thread *t)
{
	struct stack *s = calloc(1, sizeof(*s));

	if (s)
		s->levels = calloc(LEVELS, sizeof(*s->levels));
	if (!s || !s->levels) {
		free(s);
		return NULL;
	}
	s->limit = s->levels + LEVELS;
	s->top = s->levels;
	s->number = t->next_stack;
	t->next_stack += t->next_stack < LARGEST_STACK;
	s->next = t->stacks;
	t->stacks = s;
	return s;
}

/* This thread is not recorded, or no more; under the lock. */
static void leave_out(struct thread *t)
{
	t->without = rec.recording;
	rec.shared->counters[PST_CALLS_NO_BATCH]++;
	if (t->batch)
		t->batch->thread = 0;
	t->batch = NULL;
	t->recording = NO_RECORDING;
}

static bool is_foreign(uint32_t tid)
{
	const uint32_t *foreign = rec.foreign;

	while (foreign && *foreign && *foreign != tid)
		foreign++;
	return foreign && *foreign;
}

bool recorder_hush(int by)
{
	if (by < 0 && !hushed)
		return false;
	hushed += by;
	if (this_thread)
		this_thread->quiet += by;
	return true;
}

COLD struct thread *recorder_attach(void)
{
	struct thread *t = this_thread;

	if (t && t->without == rec.recording)
		return NULL;
	pthread_mutex_lock(&recorder_lock);
	if (!t) {
		t = calloc(1, sizeof(*t));
		if (!t) { /* it will be asked for again: whoever that is counts as one */
			rec.shared->counters[PST_CALLS_NO_BATCH] += !out_of_memory;
			out_of_memory = true;
			goto done;
		}
		t->next = threads;
		threads = t;
		this_thread = t;
		pthread_setspecific(key, t);
	}
	find_stack(t);
	free_stacks(t);
	free(t->inside);
	t->inside = NULL;
	t->next_stack = 0;
	t->hooked = 0;
	t->unhooked = t->refused = false;
	t->recording = NO_RECORDING;
	t->quiet = hushed;
	t->began = NULL;
	t->batch = take_batch();
	t->stack = t->batch ? new_stack(t) : NULL;
	if (!t->stack) {
		leave_out(t);
		goto done;
	}
	t->recording = rec.recording;
	t->top = t->stack->top;
	t->limit = t->stack->limit;
	t->batch->thread = ++last_thread;
	t->batch->tid = syscall(SYS_gettid);
	t->foreign = is_foreign(t->batch->tid);
	t->batch->count = 0;
	t->others = 0;
	t->batch->sequence = 0;
	begin_batch(t);
done:
	pthread_mutex_unlock(&recorder_lock);
	return t && t->batch ? t : NULL;
}

COLD bool recorder_count_inside(struct thread *t)
{
	if (!t->inside)
		t->inside = calloc(PST_COUNTED, sizeof(*t->inside));
	return t->inside;
}

/* There is no memory for more calls of this thread: what it has stored is kept. */
static COLD bool give_up(struct thread *t)
{
	recorder_flush(t);
	t->limit = t->top + 1; /* nothing can be pushed */
	pthread_mutex_lock(&recorder_lock);
	leave_out(t);
	pthread_mutex_unlock(&recorder_lock);
	return false;
}

COLD bool recorder_grow(struct thread *t)
{
	struct stack *s = t->stack;
	size_t size = s->limit - s->levels;

	if (!t->batch)
		return false;

	struct level *levels = malloc(2 * size * sizeof(*levels));

	if (!levels)
		return give_up(t);
	memcpy(levels, s->levels, size * sizeof(*levels));
	t->top = levels + (t->top - s->levels);
	free(s->levels);
	s->levels = levels;
	s->limit = t->limit = levels + 2 * size;
	return true;
}

void recorder_switch(struct thread *t, struct stack *s)
{
	t->stack->top = t->top;
	t->stack = s;
	t->top = s->top;
	t->limit = s->limit;
	put_other(t, PST_WORD_SWITCH, s->number);
}

COLD bool recorder_new_stack(struct thread *t)
{
	struct stack *s = t->stacks;

	while (s && (s == t->stack || s->top != s->levels))
		s = s->next;
	if (!s)
		s = new_stack(t);
	if (!s)
		return give_up(t);
	recorder_switch(t, s);
	return true;
}

/* Store an event of a thread that is not the one running, which must not send its batch. */
static void put_unsent(struct thread *t, enum pst_other kind)
{
	struct pst_batch *b = t->batch;
	uint64_t now = ticks_now();
	uint32_t n = b->count;

	if ((int64_t)(now - t->last) < 0)
		now = t->last;
	if (now - t->last > WHOLE_TIME) {
		b->words[n++] = (uint64_t)PST_OTHER << PST_KIND_SHIFT | (uint64_t)PST_WORD_TIME
										<< PST_TIME_BITS;
		b->words[n++] = now;
		t->others += 2;
	}
	t->last = now;
	t->others++;
	b->words[n++] = (uint64_t)PST_OTHER << PST_KIND_SHIFT | (uint64_t)kind << PST_TIME_BITS |
			(now & ((1ull << PST_TIME_BITS) - 1));
	b->count = n;
}

COLD void recorder_gap(enum pst_other kind)
{
	pthread_mutex_lock(&recorder_lock);
	for (struct thread *t = threads; t; t = t->next)
		/* With room for a whole time: only its own thread may send a batch. */
		if (t->batch && t->recording == rec.recording &&
		    t->batch->count + 3 < PST_BATCH_WORDS)
			put_unsent(t, kind);
	pthread_mutex_unlock(&recorder_lock);
}

void recorder_keep_bound(void)
{
	struct thread *own = this_thread;

	pthread_mutex_lock(&recorder_lock);
	/* In a notebook this is the cell's: the kernel's own threads don't take its events. */
	if (own)
		recorder_keep_bound_of(own);
	for (struct thread *t = threads; t; t = t->next)
		if (t != own)
			recorder_keep_bound_of(t);
	rec.bound_kept = true;
	pthread_mutex_unlock(&recorder_lock);
}
