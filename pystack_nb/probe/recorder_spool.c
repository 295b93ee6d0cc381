/* SPDX-License-Identifier: MIT */
/* The in-process source's file, that batches are written to. */
#define _GNU_SOURCE
#include "recorder_parts.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NOWHERE = INT_MAX }; /* rec.spool: the file can't be had any more */

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

void recorder_know_spool(int fd)
{
	struct stat status;
	char link[64];
	ssize_t size;

	rec.spool = fd;
	rec.error = 0;
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

void recorder_close_spool(void)
{
	if (spooled.reopened && is_spool(rec.spool))
		close(rec.spool);
	spooled.reopened = false;
	rec.spool = -1;
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

void recorder_write_batch(struct pst_batch *b, uint16_t flags)
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
			recorder_write_batch(&rec.batches[i], PST_CALLS_REST);
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
