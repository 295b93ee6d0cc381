/*
 * What the probe of calls mode does towards the collector, and nothing else: it fills
 * batches in a shared memory and reaches the site with them.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stddef.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "pystack_time.h"

#ifndef SITE
#define SITE        "pystack_probe_site"
#define OTHER       "other_function"
#define FIRST_BYTES "0x0f, 0x1f, 0x44, 0x00, 0x00"
#endif

#define FUNCTION(name, bytes)                                                                      \
	asm(".text\n.p2align 4\n.globl " name "\n.type " name ", @function\n" name ":\n"           \
	    ".byte " bytes "\nret\n.size " name ", . - " name "\n")

FUNCTION(SITE, FIRST_BYTES);
FUNCTION(OTHER, "0x0f, 0x1f, 0x44, 0x00, 0x00");

void site(void *batch) asm(SITE);

static struct pst_shared *shared;

static struct pst_batch *batch_at(int index)
{
	return (void *)((char *)shared + PST_BATCHES_AT + (size_t)index * PST_BATCH_SIZE);
}

static __u64 now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

int shared_size(void)
{
	return PST_SHARED_SIZE;
}

/* A memory as the collector wants it, but for the seals and the size. */
int make(int seals, int size)
{
	int fd = memfd_create("calls", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	if (ftruncate(fd, size))
		return -1;
	if (!(seals & F_SEAL_WRITE)) {
		shared = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		shared->magic = PST_SHARED_MAGIC;
		shared->format = PST_FORMAT;
	}
	fcntl(fd, F_ADD_SEALS, seals);
	return fd;
}

void set_clock(unsigned int clock)
{
	shared->clock = clock;
}

void set_counter(int counter, __u64 value)
{
	shared->counters[counter] = value;
}

void set_count(int code_id, __u64 calls, __u64 ticks)
{
	struct pst_count *counts = (void *)((char *)shared + PST_COUNTS_AT);

	counts[code_id] = (struct pst_count){calls, ticks};
}

__u64 sent(void)
{
	return shared->sent;
}

__u64 drained(void)
{
	return __atomic_load_n(&shared->drained, __ATOMIC_ACQUIRE);
}

/*
 * For a forked child.  Where the kernel has made a uprobe a call of its trampoline, the
 * child has the call but not the trampoline, which a fork does not copy: reaching the site
 * would kill it.  Without its copy of the page it has the file's nop again.
 */
int restore_site(void)
{
	char *page = (char *)((unsigned long)site & ~4095ul);

	return madvise(page, 4096, MADV_DONTNEED);
}

/* Give the calling thread a batch. */
void begin(int index)
{
	struct pst_batch *batch = batch_at(index);

	batch->thread = index + 1;
	batch->tid = gettid();
	batch->count = 0;
	batch->sequence = 0;
	batch->pair = (struct pst_pair){now(), now(), now()};
	while (shared->used <= (__u32)index)
		shared->used++;
}

/* Store words, each of which tells where it belongs. */
void store(int index, unsigned int words)
{
	struct pst_batch *batch = batch_at(index);

	while (words--) {
		batch->words[batch->count] = batch->sequence << 16 | batch->count;
		batch->count++;
	}
}

/* Reach the site, at any address, and go on with the next batch. */
void reach(void *address)
{
	while (shared->sent - drained() >= PST_PENDING_BATCHES)
		sched_yield();
	__atomic_fetch_add(&shared->sent, 1, __ATOMIC_ACQ_REL);
	site(address);
}

void send_batches(int index, unsigned int batches, unsigned int words)
{
	struct pst_batch *batch = batch_at(index);

	while (batches--) {
		store(index, words);
		reach(batch);
		batch->sequence++;
		batch->count = 0;
	}
}

/* Send what can't be a batch, as it says itself that it is longer than any. */
void send_too_long(int index)
{
	struct pst_batch *batch = batch_at(index);

	batch->count = PST_BATCH_WORDS + 1;
	reach(batch);
	batch->sequence++;
	batch->count = 0;
}

/* Store word after word until the process is killed. */
void go_on_for_ever(int index)
{
	for (;;) {
		for (int i = 0; i < PST_BATCH_WORDS; i++)
			store(index, 1);
		send_batches(index, 1, 0);
	}
}

/* Fill all of the memory with bits that mean nothing; what stands before them stays. */
void fill_with_rubbish(void)
{
	__u32 *words = (void *)shared;

	for (size_t i = offsetof(struct pst_shared, clock) / 4; i < PST_SHARED_SIZE / 4; i++)
		words[i] = (__u32)i * 2654435761u;
	shared->used = ~0u;
}
