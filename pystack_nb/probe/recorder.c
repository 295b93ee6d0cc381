/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "recorder.h"

#include "evaluate.h"
#include "segments.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
	WAIT_NS = 50000,
	PATIENCE_NS = 1000000000, /* without any progress of the drain */
	LEVELS = 32,
	LARGEST_STACK = (1 << (PST_OPERAND_BITS - 4)) - 1, /* operand of PST_WORD_SWITCH */
	NO_RECORDING = -1,
	NOWHERE = INT_MAX, /* rec.spool: the in-process source's file can't be had any more */
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

/* A thread may end without the GIL while another one stops the recording. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static struct thread *threads;
static uint32_t last_thread;
static uint64_t left_behind; /* what was drained when the drain was last given up */

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
void pystack_probe_site(struct pst_batch *batch);

static void read_pair(struct pst_pair *pair)
{
	pair->before = ticks_now();
	pair->ns = monotonic_ns();
	pair->after = ticks_now();
}

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

static void keep_bound_of(struct thread *t);

/* The end of a thread, after its last Python code and perhaps without the GIL. */
static void thread_ends(void *arg)
{
	struct thread *t = arg, **at = &threads;

	pthread_mutex_lock(&lock);
	while (*at && *at != t)
		at = &(*at)->next;
	if (*at)
		*at = t->next;
	if (t->batch && t->recording == rec.recording && rec.recording) {
		recorder_flush(t);
		t->batch->thread = 0;
	} else {
		keep_bound_of(t);
	}
	pthread_mutex_unlock(&lock);
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

/* Which file the spool is: the recorded program may close its descriptor. */
static struct {
	dev_t device;
	ino_t inode;
	char path[PATH_MAX];
	bool reopened; /* rec.spool is a descriptor of the recorder's own */
} spooled;

static bool is_spool(int fd)
{
	struct stat status;

	return !fstat(fd, &status) && status.st_dev == spooled.device &&
	       status.st_ino == spooled.inode;
}

static void know_spool(int fd)
{
	struct stat status;
	char link[64];
	ssize_t size;

	spooled.reopened = false;
	spooled.path[0] = 0;
	if (fd < 0 || fstat(fd, &status))
		return;
	spooled.device = status.st_dev;
	spooled.inode = status.st_ino;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	size = readlink(link, spooled.path, sizeof(spooled.path) - 1);
	spooled.path[size < 0 ? 0 : size] = 0;
}

/* Whether the spool can be written to: it is opened anew where another file has its number. */
static bool find_spool(void)
{
	if (is_spool(rec.spool))
		return true;
	spooled.reopened = false;
	rec.spool = open(spooled.path, O_WRONLY | O_APPEND | O_CLOEXEC | O_NOFOLLOW);
	if (rec.spool >= 0 && is_spool(rec.spool))
		return spooled.reopened = true;
	if (rec.spool >= 0)
		close(rec.spool);
	rec.spool = NOWHERE;
	return false;
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
	know_spool(spool);
	rec.shared = memory;
	rec.batches = (void *)((char *)memory + PST_BATCHES_AT);
	rec.counts = (void *)((char *)memory + PST_COUNTS_AT);
	rec.clock = rec.shared->clock;
	rec.spool = spool;
	rec.error = 0;
	rec.events = 0;
	rec.max_events = max_events;
	rec.bound_kept = false;
	last_thread = 0;
	left_behind = UINT64_MAX;
	rec.deep = false;
	rec.shared->recording = ++recordings ? recordings : ++recordings;
	read_pair(&rec.shared->start);
	rec.recording = recordings;
	return 0;
}

void recorder_stop(void)
{
	pthread_mutex_lock(&lock);
	rec.recording = 0;
	pthread_mutex_unlock(&lock);
}

void recorder_close(void)
{
	pthread_mutex_lock(&lock);
	for (struct thread *t = threads; t; t = t->next) {
		t->batch = NULL;
		segments_free(t, false);
	}
	if (rec.shared)
		munmap(rec.shared, PST_SHARED_SIZE);
	rec.shared = NULL;
	if (spooled.reopened && is_spool(rec.spool))
		close(rec.spool);
	spooled.reopened = false;
	rec.spool = -1;
	pthread_mutex_unlock(&lock);
}

void recorder_count_fork(void)
{
	pthread_mutex_lock(&lock);
	if (rec.shared && rec.recording)
		rec.shared->counters[PST_CALLS_FORKS]++;
	pthread_mutex_unlock(&lock);
}

void recorder_forget(void)
{
	/*
	 * Where the kernel has turned the site's nop into a call, this copy has the call, but not
	 * what it leads to; without its own copy of the page it has the file's nop again.
	 */
	madvise((void *)((uintptr_t)pystack_probe_site & ~4095ul), 4096, MADV_DONTNEED);
	/* Whoever held the lock is not in this process; nor are the other threads. */
	pthread_mutex_init(&lock, NULL);
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

static void begin_batch(struct thread *t)
{
	read_pair(&t->batch->pair);
	/* What is stored goes on from here, so that a reader needs nothing else. */
	t->last = t->batch->pair.after;
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
	if (!s || !s->levels)
		Py_FatalError("pystack_nb: no memory for a stack of the recording");
	s->limit = s->levels + LEVELS;
	s->top = s->levels;
	s->number = t->next_stack;
	t->next_stack += t->next_stack < LARGEST_STACK;
	s->next = t->stacks;
	t->stacks = s;
	return s;
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
	pthread_mutex_lock(&lock);
	if (!t) {
		t = calloc(1, sizeof(*t));
		if (!t)
			goto done;
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
	if (!t->batch) {
		t->without = rec.recording;
		rec.shared->counters[PST_CALLS_NO_BATCH]++;
		goto done;
	}
	t->recording = rec.recording;
	t->stack = new_stack(t);
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
	pthread_mutex_unlock(&lock);
	return t && t->batch ? t : NULL;
}

COLD bool recorder_count_inside(struct thread *t)
{
	if (!t->inside)
		t->inside = calloc(PST_COUNTED, sizeof(*t->inside));
	return t->inside;
}

COLD void recorder_grow(struct thread *t)
{
	struct stack *s = t->stack;
	size_t size = s->limit - s->levels, at = t->top - s->levels;
	struct level *levels = realloc(s->levels, 2 * size * sizeof(*levels));

	if (!levels)
		Py_FatalError("pystack_nb: no memory for a stack of the recording");
	s->levels = levels;
	s->limit = t->limit = levels + 2 * size;
	t->top = levels + at;
}

void recorder_switch(struct thread *t, struct stack *s)
{
	t->stack->top = t->top;
	t->stack = s;
	t->top = s->top;
	t->limit = s->limit;
	put_other(t, PST_WORD_SWITCH, s->number);
}

COLD void recorder_new_stack(struct thread *t)
{
	struct stack *s = t->stacks;

	while (s && (s == t->stack || s->top != s->levels))
		s = s->next;
	recorder_switch(t, s ? s : new_stack(t));
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
	pthread_mutex_lock(&lock);
	for (struct thread *t = threads; t; t = t->next)
		/* With room for a whole time: only its own thread may send a batch. */
		if (t->batch && t->recording == rec.recording &&
		    t->batch->count + 3 < PST_BATCH_WORDS)
			put_unsent(t, kind);
	pthread_mutex_unlock(&lock);
}

static int64_t pending(uint64_t drained)
{
	return __atomic_load_n(&rec.shared->sent, __ATOMIC_RELAXED) - drained;
}

/* Let the drain follow, rather than lose anything. */
static void wait_for_drain(void)
{
	uint64_t seen = __atomic_load_n(&rec.shared->drained, __ATOMIC_RELAXED);
	uint64_t begun = monotonic_ns(), since = begun, now;

	if (seen == left_behind) { /* still: wait once, not for each batch */
		rec.shared->counters[PST_CALLS_GAVE_UP]++;
		return;
	}

	while (pending(seen) > PST_PENDING_BATCHES) {
		struct timespec pause = {.tv_nsec = WAIT_NS};
		uint64_t drained;

		nanosleep(&pause, NULL);
		now = monotonic_ns();
		drained = __atomic_load_n(&rec.shared->drained, __ATOMIC_RELAXED);
		if (drained != seen) {
			seen = drained;
			since = now;
		} else if (now - since > PATIENCE_NS) {
			left_behind = seen;
			rec.shared->counters[PST_CALLS_GAVE_UP]++;
			break;
		}
	}
	rec.shared->counters[PST_CALLS_WAITED_NS] += monotonic_ns() - begun;
}

/* Write records as one block of a spool file. */
static void write_record(struct iovec *parts, int count)
{
	struct pst_block_header head = {.magic = PST_BLOCK_MAGIC, .record_count = 1};
	uint32_t sizes[2] = {0};
	struct iovec iov[4] = {{&head, sizeof(head)}, {sizes, sizeof(sizes)}};

	for (int i = 0; i < count; i++) {
		sizes[0] += parts[i].iov_len;
		iov[2 + i] = parts[i];
	}
	head.data_size = sizes[0];
	if (rec.error)
		return;
	if (!find_spool()) {
		rec.error = EBADF;
		return;
	}
	ssize_t wanted = sizeof(head) + sizeof(sizes) + sizes[0];
	ssize_t n = writev(rec.spool, iov, 2 + count);

	if (n != wanted)
		rec.error = n < 0 ? errno : ENOSPC;
}

static void write_batch(struct pst_batch *b, uint16_t flags)
{
	struct pst_calls head = {
		.header = {.type = PST_CALLS, .flags = flags},
		.pid = getpid(),
		.tid = b->tid,
	};
	size_t fixed = offsetof(struct pst_calls, batch);
	size_t used = offsetof(struct pst_batch, words) + b->count * sizeof(b->words[0]);
	struct iovec parts[] = {{&head, fixed}, {b, used}};

	head.header.size = fixed + used;
	write_record(parts, 2);
}

void recorder_write_rest(void)
{
	struct pst_clock clock = {
		.header = {.size = sizeof(clock), .type = PST_CLOCK},
		.clock = rec.clock,
	};
	struct iovec part = {&clock, sizeof(clock)};
	uint32_t counted = 0;

	clock.pair = rec.shared->start;
	write_record(&part, 1);
	for (uint32_t i = 0; i < rec.shared->used; i++)
		if (rec.batches[i].thread)
			write_batch(&rec.batches[i], PST_CALLS_REST);
	read_pair(&clock.pair);
	write_record(&part, 1);

	for (uint32_t i = 0; i < PST_COUNTED; i++)
		counted += rec.counts[i].calls != 0;
	size_t size = sizeof(struct pst_counts) + counted * sizeof(struct pst_code_count);
	struct pst_counts *counts = calloc(1, size);

	if (!counts) {
		rec.error = ENOMEM;
		return;
	}
	counts->header = (struct pst_header){.size = size, .type = PST_COUNTS};
	memcpy(counts->counters, rec.shared->counters, sizeof(counts->counters));
	for (uint32_t i = 0; i < PST_COUNTED; i++)
		if (rec.counts[i].calls)
			counts->codes[counts->count++] =
				(struct pst_code_count){.code_id = i, .count = rec.counts[i]};
	part = (struct iovec){counts, size};
	write_record(&part, 1);
	free(counts);
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

/* Count the events of a thread's batch; false: it had too many, and was cut. */
static bool keep_bound(struct thread *t)
{
	uint64_t count = t->batch->count - t->others;
	/* Atomic: a thread ends without the GIL. */
	uint64_t events = __atomic_add_fetch(&rec.events, count, __ATOMIC_RELAXED);

	if (!rec.max_events || events < rec.max_events)
		return true;
	events -= count;
	cut(t->batch, events < rec.max_events ? rec.max_events - events : 0);
	return false;
}

/* The same, once recording has ended. */
static void keep_bound_of(struct thread *t)
{
	if (!rec.bound_kept && t->batch && t->recording == rec.shared->recording && !keep_bound(t))
		rec.shared->counters[PST_CALLS_MAX_EVENTS] = 1;
}

void recorder_keep_bound(void)
{
	pthread_mutex_lock(&lock);
	for (struct thread *t = threads; t; t = t->next)
		keep_bound_of(t);
	rec.bound_kept = true;
	pthread_mutex_unlock(&lock);
}

COLD void recorder_flush(struct thread *t)
{
	struct pst_batch *b = t->batch;

	if (!b->count)
		return;
	if (!keep_bound(t)) {
		rec.shared->counters[PST_CALLS_MAX_EVENTS] = 1;
		rec.recording = 0;
	}
	t->others = 0;
	evaluate_look();
	if (rec.spool >= 0) {
		write_batch(b, 0);
	} else {
		__atomic_fetch_add(&rec.shared->sent, 1, __ATOMIC_RELAXED);
		pystack_probe_site(b);
		if (pending(__atomic_load_n(&rec.shared->drained, __ATOMIC_RELAXED)) >
		    PST_PENDING_BATCHES)
			wait_for_drain();
	}
	/* In this order: killed in between, it has a number that has come already. */
	__atomic_store_n(&b->count, 0, __ATOMIC_RELEASE);
	__atomic_store_n(&b->sequence, b->sequence + 1, __ATOMIC_RELEASE);
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
