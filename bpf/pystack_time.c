// SPDX-License-Identifier: MIT
/*
 * Drain a BPF ring buffer into a file, on a thread of its own; and ask BTF where the
 * kernel keeps what the BPF program reads.  The collector calls this through ctypes
 * (pystack_nb/collector/drain.py); every function is safe to call from one thread
 * while the drain's thread runs.
 *
 * The file belongs to the client: the drain's thread takes the client's file-system
 * identity and gives up every capability, so that the client's quota and limits hold.
 */
#define _GNU_SOURCE
#include <bpf/btf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/capability.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "pystack_time.h"

enum {
	ROUND_SIZE = 16
		<< 20, // twice the ring buffer: all that was in it, and no more than a slow disk
	TICK_MS = 50,  /* the ring buffer never wakes anybody: look this often */
	BLOCK_DATA = 1 << 20,
	BLOCK_RECORDS = 1 << 15,
	ADDRESSES_SIZE = 4 << 20,
	APPENDED_SIZE = 8 << 20,
};

// Bytes that are given to the other side as they are.
struct buffer {
	char *data;
	size_t used, size;
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

	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t wake, done;
	// Under the lock:
	unsigned long asked, answered; // flushes
	int stop;
	int error; // errno of the first failed write
	__u64 disk_lost;
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

// Samples among the records that did not get into the file: those after `written`.
static __u64 samples_after(const struct pst_drain *d, size_t written)
{
	__u64 n = 0;
	size_t end = 0;

	for (__u32 i = 0; i < d->records; i++) {
		const struct pst_header *h = (const void *)(d->block + end);

		end += d->sizes[i];
		if (end > written && h->type == PST_SAMPLE)
			n++;
	}
	return n;
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
		__u64 lost = samples_after(d, written > before ? written - before : 0);

		pthread_mutex_lock(&d->lock);
		d->error = error;
		d->disk_lost += lost;
		pthread_mutex_unlock(&d->lock);
	}
	d->records = 0;
	d->block_used = 0;
}

static void put_record(struct pst_drain *d, const void *record, __u32 size)
{
	__u32 whole = padded(size);

	if (d->records == BLOCK_RECORDS || d->block_used + whole > BLOCK_DATA)
		write_block(d);
	memcpy(d->block + d->block_used, record, size);
	memset(d->block + d->block_used + size, 0, whole - size);
	d->block_used += whole;
	d->sizes[d->records++] = whole;
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
	} else {
		put_record(d, data, (__u32)size);
	}
	// A negative number makes libbpf stop behind this record.
	return d->round < ROUND_SIZE ? 0 : -EAGAIN;
}

static void drop_rights(const struct pst_drain *d)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[2] = {};

	// The system calls, not glibc's functions: these are for this thread alone.
	syscall(SYS_setfsgid, d->gid);
	syscall(SYS_setfsuid, d->uid);
	if (d->uid)
		syscall(SYS_capset, &head, none);
}

static void *run(void *arg)
{
	struct pst_drain *d = arg;
	struct buffer *mine = &d->taken;

	drop_rights(d);
	for (int stop = 0; !stop;) {
		unsigned long asked;
		struct timespec until;

		pthread_mutex_lock(&d->lock);
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += TICK_MS * 1000000L;
		if (until.tv_nsec >= 1000000000L) {
			until.tv_nsec -= 1000000000L;
			until.tv_sec++;
		}
		while (!d->stop && d->asked == d->answered &&
		       pthread_cond_timedwait(&d->wake, &d->lock, &until) != ETIMEDOUT)
			;
		asked = d->asked;
		stop = d->stop;
		pthread_mutex_unlock(&d->lock);

		d->round = 0;
		ring_buffer__consume(d->ring);

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
	ring_buffer__free(d->ring);
	free(d->block);
	free(d->sizes);
	free(d->taken.data);
	free(d->appended.data);
	free(d->addresses.data);
	free(d);
}

/*
 * Begin to drain the ring buffer map `ring_fd` to the end of the file `fd`, which
 * stays the caller's.  Returns 0 or a negative errno.
 */
int pst_drain_create(int ring_fd, int fd, unsigned int uid, unsigned int gid,
		     struct pst_drain **ret)
{
	struct pst_drain *d = calloc(1, sizeof(*d));
	pthread_condattr_t attributes;
	sigset_t all, before;
	struct stat st;
	int error;

	if (!d)
		return -ENOMEM;
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
	d->ring = ring_buffer__new(ring_fd, on_record, d, NULL);
	error = -errno;
	if (!d->ring)
		goto fail;

	pthread_mutex_init(&d->lock, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&d->wake, &attributes);
	pthread_cond_init(&d->done, &attributes);
	pthread_condattr_destroy(&attributes);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	error = -pthread_create(&d->thread, NULL, run, d);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
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
	pthread_mutex_destroy(&d->lock);
	pthread_cond_destroy(&d->wake);
	pthread_cond_destroy(&d->done);
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

/* The errno of the first write that failed, or 0; and the samples lost by that. */
int pst_drain_error(struct pst_drain *d, __u64 *disk_lost)
{
	pthread_mutex_lock(&d->lock);
	int error = d->error;

	*disk_lost = d->disk_lost;
	pthread_mutex_unlock(&d->lock);
	return error;
}

// Byte offset of member `name` of structure `type`, anonymous members entered; its type.
static int member_offset(const struct btf *btf, int type, const char *name, __u32 *offset,
			 int *member_type)
{
	const struct btf_type *t = btf__type_by_id(btf, type);

	while (t && (btf_is_mod(t) || btf_is_typedef(t)))
		t = btf__type_by_id(btf, t->type);
	if (!t || !btf_is_composite(t))
		return -ENOENT;
	const struct btf_member *m = btf_members(t);

	for (int i = 0; i < btf_vlen(t); i++) {
		const char *found = btf__name_by_offset(btf, m[i].name_off);
		__u32 here = btf_member_bit_offset(t, i) / 8, inner = 0;

		if (found && !strcmp(found, name)) {
			*offset = here;
			*member_type = m[i].type;
			return 0;
		}
		if (found && !*found && !member_offset(btf, m[i].type, name, &inner, member_type)) {
			*offset = here + inner;
			return 0;
		}
	}
	return -ENOENT;
}

/* Ask the running kernel's BTF for what BCC, which has no CO-RE, must be told. */
int pst_kernel_layout(struct pst_kernel_layout *out)
{
	struct btf *btf = btf__load_vmlinux_btf();
	int task, mm, cred, thread, ignored, error = -ENOENT;
	__u32 thread_offset, fsbase;

	if (!btf)
		return errno ? -errno : -ENOENT;
	task = btf__find_by_name_kind(btf, "task_struct", BTF_KIND_STRUCT);
	mm = btf__find_by_name_kind(btf, "mm_struct", BTF_KIND_STRUCT);
	cred = btf__find_by_name_kind(btf, "cred", BTF_KIND_STRUCT);
	if (!member_offset(btf, task, "thread", &thread_offset, &thread) &&
	    !member_offset(btf, thread, "fsbase", &fsbase, &ignored) &&
	    !member_offset(btf, task, "real_cred", &out->task_real_cred, &ignored) &&
	    !member_offset(btf, task, "mm", &out->task_mm, &ignored) &&
	    !member_offset(btf, mm, "flags", &out->mm_flags, &ignored) &&
	    !member_offset(btf, cred, "uid", &out->cred_ids, &ignored) &&
	    !member_offset(btf, cred, "cap_permitted", &out->cred_permitted, &ignored)) {
		out->task_fsbase = thread_offset + fsbase;
		error = 0;
	}
	btf__free(btf);
	return error;
}
