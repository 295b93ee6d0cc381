// SPDX-License-Identifier: MIT
/*
 * Drain a BPF ring buffer into a file, on a thread of its own.  The collector calls
 * this through ctypes (pystack_nb/collector/drain.py); every function is safe to call
 * from one thread while the drain's thread runs.
 *
 * The file belongs to the client: the drain's thread takes the client's file-system
 * identity and gives up every capability, so that the client's quota and limits hold.
 */
#define _GNU_SOURCE
#include <bpf/libbpf.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "pystack_time.h"
#include "rights.h"

enum {
	// Twice the ring buffer: all that was in it, and no more than a slow disk.
	ROUND_SIZE = 32 << 20,
	// The ring buffer never wakes anybody: look this often.
	TICK_NS = 50000000,
	/*
	 * Where calls are recorded, often enough that a round brings about BUSY_ROUND: the
	 * probe waits when PST_PENDING_BATCHES have not been taken.
	 */
	LONGEST_CALLS_TICK_NS = 10000000,
	SHORTEST_CALLS_TICK_NS = 1000000,
	BUSY_ROUND = 1 << 20,
	BLOCK_DATA = 2 << 20, // the largest PST_COUNTS fits in
	BLOCK_RECORDS = 1 << 15,
	ADDRESSES_SIZE = 4 << 20,
	APPENDED_SIZE = 8 << 20,
};

// Bytes that are given to the other side as they are.
struct buffer {
	char *data;
	size_t used, size;
};

// What did not get into the file.
struct pst_losses {
	__u64 samples; // for which the disk had no room
	__u64 batches; // of calls, likewise
	__u64 refused; // batches that can't be what they say
};

struct pst_drain {
	struct ring_buffer *ring;
	int fd;
	off_t at;
	unsigned int uid, gid;

	char *block; // the records of the block being filled
	size_t block_used;
	__u32 *sizes;
	__u32 records;
	size_t round;        // bytes taken from the ring buffer without a look at anything else
	struct buffer taken; // from `appended`, as large as that

	struct pst_shared *shared;        // its first page; NULL: no calls are recorded
	__u64 batches_before;             // sent when the recording began
	__u64 batches_taken;              // from the ring buffer
	_Atomic __u64 batches_not_copied; // into the ring buffer, as the collector tells

	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t wake, done;
	// Under the lock:
	unsigned long asked, answered; // flushes
	int begun;                     // the thread has the client's rights, or:
	int refused;                   // a negative errno
	int stop;
	int error; // errno of the first failed write
	struct pst_losses lost;
	struct buffer appended;  // from the collector, to the file
	struct buffer addresses; // from the kernel, to the collector
};

static int buffer_put(struct buffer *b, const void *data, size_t size)
{
	if (size > b->size - b->used)
		return -ENOBUFS;
	memcpy(b->data + b->used, data, size);
	b->used += size;
	return 0;
}

static __u32 padded(__u32 size)
{
	return (size + 7) & ~7u;
}

// Count the records of the block that did not get into the file: those after `written`.
static void count_lost(struct pst_drain *d, size_t written)
{
	size_t end = 0;

	for (__u32 i = 0; i < d->records; i++) {
		const struct pst_header *h = (const void *)(d->block + end);

		end += d->sizes[i];
		if (end > written) {
			d->lost.samples += h->type == PST_SAMPLE;
			d->lost.batches += h->type == PST_CALLS;
		}
	}
}

// Write what `iov` names; the bytes that got there, fewer after an error.
static size_t write_all(struct pst_drain *d, struct iovec *iov, int count, int *error)
{
	size_t written = 0;

	while (count) {
		ssize_t n = pwritev(d->fd, iov, count, d->at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			*error = n ? errno : EIO;
			break;
		}
		written += n;
		d->at += n;
		while (count && (size_t)n >= iov->iov_len) {
			n -= iov->iov_len;
			iov++;
			count--;
		}
		if (count) {
			iov->iov_base = (char *)iov->iov_base + n;
			iov->iov_len -= n;
		}
	}
	return written;
}

static void write_block(struct pst_drain *d)
{
	struct pst_block_header head = {
		.magic = PST_BLOCK_MAGIC,
		.record_count = d->records,
		.data_size = d->block_used,
	};
	size_t sizes_size = ((size_t)d->records * sizeof(__u32) + 7) & ~(size_t)7;
	struct iovec iov[] = {
		{&head, sizeof(head)},
		{d->sizes, sizes_size},
		{d->block, d->block_used},
	};
	size_t before = sizeof(head) + sizes_size, written = 0;
	int error = d->error;

	if (!d->records)
		return;
	d->sizes[d->records] = 0; // the padding
	if (!error)
		written = write_all(d, iov, 3, &error);
	if (error) {
		pthread_mutex_lock(&d->lock);
		d->error = error;
		count_lost(d, written > before ? written - before : 0);
		pthread_mutex_unlock(&d->lock);
	}
	d->records = 0;
	d->block_used = 0;
}

static struct pst_header *put_record(struct pst_drain *d, const void *record, __u32 size)
{
	__u32 whole = padded(size);

	if (d->records == BLOCK_RECORDS || d->block_used + whole > BLOCK_DATA)
		write_block(d);
	char *at = d->block + d->block_used;

	memcpy(at, record, size);
	memset(at + size, 0, whole - size);
	d->block_used += whole;
	d->sizes[d->records++] = whole;
	return (struct pst_header *)at;
}

// A batch without the words that it has room for only.
static void put_calls(struct pst_drain *d, const struct pst_calls *calls)
{
	__u32 count = calls->batch.count;
	__u32 size = offsetof(struct pst_calls, batch.words) + count * sizeof(__u64);

	if (count <= PST_BATCH_WORDS) {
		put_record(d, calls, size)->size = size;
	} else {
		pthread_mutex_lock(&d->lock);
		d->lost.refused++;
		pthread_mutex_unlock(&d->lock);
	}
	d->batches_taken++;
}

// Tell the probe how many of its batches it need not wait for any more.
static void tell_drained(struct pst_drain *d)
{
	if (d->shared)
		__atomic_store_n(&d->shared->drained,
				 d->batches_before + d->batches_taken + d->batches_not_copied,
				 __ATOMIC_RELEASE);
}

static int on_record(void *ctx, void *data, size_t size)
{
	struct pst_drain *d = ctx;
	const struct pst_header *h = data;

	d->round += size;
	if (h->type == PST_ADDRESSES) {
		pthread_mutex_lock(&d->lock);
		// When it is full the stack stays without names, which the reader counts.
		buffer_put(&d->addresses, data, h->size);
		pthread_mutex_unlock(&d->lock);
	} else if (h->type == PST_CALLS) {
		put_calls(d, data);
		tell_drained(d);
	} else {
		put_record(d, data, (__u32)size);
	}
	// A negative number makes libbpf stop behind this record.
	return d->round < ROUND_SIZE ? 0 : -EAGAIN;
}

// Nanoseconds until the next look at the ring buffer, after the last one.
static long next_tick(const struct pst_drain *d, long tick)
{
	if (!d->shared)
		return TICK_NS;
	if (d->round > BUSY_ROUND)
		tick /= 2;
	else if (d->round < BUSY_ROUND / 4)
		tick *= 2;
	if (tick < SHORTEST_CALLS_TICK_NS)
		return SHORTEST_CALLS_TICK_NS;
	return tick < LONGEST_CALLS_TICK_NS ? tick : LONGEST_CALLS_TICK_NS;
}

static void *run(void *arg)
{
	struct pst_drain *d = arg;
	struct buffer *mine = &d->taken;
	long tick = next_tick(d, TICK_NS);

	pthread_mutex_lock(&d->lock);
	d->refused = pst_drop_rights(d->uid, d->gid);
	d->begun = 1;
	pthread_cond_broadcast(&d->done);
	pthread_mutex_unlock(&d->lock);
	if (d->refused)
		return NULL;
	for (int stop = 0; !stop;) {
		unsigned long asked;
		struct timespec until;

		pthread_mutex_lock(&d->lock);
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += tick;
		if (until.tv_nsec >= 1000000000L) {
			until.tv_nsec -= 1000000000L;
			until.tv_sec++;
		}
		while (!d->stop && d->asked == d->answered &&
		       pthread_cond_clockwait(&d->wake, &d->lock, CLOCK_MONOTONIC, &until) !=
			       ETIMEDOUT)
			;
		asked = d->asked;
		stop = d->stop;
		pthread_mutex_unlock(&d->lock);

		d->round = 0;
		ring_buffer__consume(d->ring);
		tell_drained(d);
		tick = next_tick(d, tick);

		// The collector's records, made before the question, follow the kernel's.
		pthread_mutex_lock(&d->lock);
		buffer_put(mine, d->appended.data, d->appended.used);
		d->appended.used = 0;
		pthread_mutex_unlock(&d->lock);
		for (size_t at = 0; at < mine->used;) {
			const struct pst_header *h = (const void *)(mine->data + at);

			put_record(d, h, h->size);
			at += padded(h->size);
		}
		mine->used = 0;
		write_block(d);

		pthread_mutex_lock(&d->lock);
		d->answered = asked;
		pthread_cond_broadcast(&d->done);
		pthread_mutex_unlock(&d->lock);
	}
	return NULL;
}

static void drain_free(struct pst_drain *d)
{
	if (!d)
		return;
	pthread_mutex_destroy(&d->lock);
	pthread_cond_destroy(&d->wake);
	pthread_cond_destroy(&d->done);
	ring_buffer__free(d->ring);
	if (d->shared)
		munmap(d->shared, PST_BATCHES_AT);
	free(d->block);
	free(d->sizes);
	free(d->taken.data);
	free(d->appended.data);
	free(d->addresses.data);
	free(d);
}

// Start the thread, and wait until it has the client's rights; 0 or a negative errno.
static int thread_start(struct pst_drain *d)
{
	sigset_t all, before;
	int error;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = -pthread_create(&d->thread, NULL, run, d);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (error)
		return error;
	pthread_mutex_lock(&d->lock);
	while (!d->begun)
		pthread_cond_wait(&d->done, &d->lock);
	error = d->refused;
	pthread_mutex_unlock(&d->lock);
	if (error)
		pthread_join(d->thread, NULL);
	return error;
}

/*
 * Begin to drain the ring buffer map `ring_fd` to the end of the file `fd`.  With
 * `shared_fd`, a struct pst_shared, calls are recorded; -1: they are not.  All three stay
 * the caller's.  Returns 0 or a negative errno.
 */
int pst_drain_create(int ring_fd, int fd, int shared_fd, unsigned int uid, unsigned int gid,
		     struct pst_drain **ret)
{
	struct pst_drain *d = calloc(1, sizeof(*d));
	struct stat st;
	int error;

	if (!d)
		return -ENOMEM;
	pthread_mutex_init(&d->lock, NULL);
	pthread_cond_init(&d->wake, NULL);
	pthread_cond_init(&d->done, NULL);
	d->fd = fd;
	d->uid = uid;
	d->gid = gid;
	d->block = malloc(BLOCK_DATA);
	d->sizes = malloc((BLOCK_RECORDS + 2) * sizeof(*d->sizes));
	d->appended.data = malloc(APPENDED_SIZE);
	d->appended.size = APPENDED_SIZE;
	d->taken.data = malloc(APPENDED_SIZE);
	d->taken.size = APPENDED_SIZE;
	d->addresses.data = malloc(ADDRESSES_SIZE);
	d->addresses.size = ADDRESSES_SIZE;
	error = -ENOMEM;
	if (!d->block || !d->sizes || !d->appended.data || !d->taken.data || !d->addresses.data)
		goto fail;
	if (fstat(fd, &st)) {
		error = -errno;
		goto fail;
	}
	d->at = st.st_size;
	if (shared_fd >= 0) {
		void *shared = mmap(NULL, PST_BATCHES_AT, PROT_READ | PROT_WRITE, MAP_SHARED,
				    shared_fd, 0);

		if (shared == MAP_FAILED) {
			error = -errno;
			goto fail;
		}
		d->shared = shared;
		d->batches_before = __atomic_load_n(&d->shared->sent, __ATOMIC_ACQUIRE);
		tell_drained(d);
	}
	d->ring = ring_buffer__new(ring_fd, on_record, d, NULL);
	if (!d->ring) {
		error = -errno;
		goto fail;
	}

	error = thread_start(d);
	if (error)
		goto fail;
	*ret = d;
	return 0;
fail:
	drain_free(d);
	return error;
}

/* Drain the rest, end the thread, free everything. */
void pst_drain_destroy(struct pst_drain *d)
{
	if (!d)
		return;
	pthread_mutex_lock(&d->lock);
	d->stop = 1;
	pthread_cond_signal(&d->wake);
	pthread_mutex_unlock(&d->lock);
	pthread_join(d->thread, NULL);
	drain_free(d);
}

/* Return once all that the kernel has given, and all that was appended, is written. */
void pst_drain_flush(struct pst_drain *d)
{
	pthread_mutex_lock(&d->lock);
	unsigned long mine = ++d->asked;

	pthread_cond_signal(&d->wake);
	while (d->answered < mine)
		pthread_cond_wait(&d->done, &d->lock);
	pthread_mutex_unlock(&d->lock);
}

/* Put a record, with its header filled in, behind the kernel's. 0 or -ENOBUFS. */
int pst_drain_append(struct pst_drain *d, const void *record, size_t size)
{
	static const char zeros[8];
	int error = -EINVAL;

	if (size < sizeof(struct pst_header) || size > BLOCK_DATA - 8 ||
	    ((const struct pst_header *)record)->size != size)
		return error;
	pthread_mutex_lock(&d->lock);
	error = -ENOBUFS;
	if (padded(size) <= d->appended.size - d->appended.used) {
		error = buffer_put(&d->appended, record, size);
		buffer_put(&d->appended, zeros, padded(size) - size);
	}
	pthread_mutex_unlock(&d->lock);
	return error;
}

/* Take the PST_ADDRESSES records that have come: the bytes put into `out`. */
size_t pst_drain_addresses(struct pst_drain *d, char *out, size_t size)
{
	pthread_mutex_lock(&d->lock);
	size_t n = 0;

	// Whole records only; each is a multiple of eight bytes.
	while (n < d->addresses.used) {
		const struct pst_header *h = (const void *)(d->addresses.data + n);

		if (h->size > size - n)
			break;
		n += h->size;
	}
	memcpy(out, d->addresses.data, n);
	memmove(d->addresses.data, d->addresses.data + n, d->addresses.used - n);
	d->addresses.used -= n;
	pthread_mutex_unlock(&d->lock);
	return n;
}

/* Tell how many batches of calls were not copied into the ring buffer: nobody waits for them. */
void pst_drain_not_copied(struct pst_drain *d, __u64 batches)
{
	d->batches_not_copied = batches;
}

/* The errno of the first write that failed, or 0; and what was lost by that or refused. */
int pst_drain_error(struct pst_drain *d, struct pst_losses *lost)
{
	pthread_mutex_lock(&d->lock);
	int error = d->error;

	*lost = d->lost;
	pthread_mutex_unlock(&d->lock);
	return error;
}
