/* SPDX-License-Identifier: MIT */
/*
 * What `_pairing` works on.  The structures that come as arrays have their dtypes in
 * pystack_nb/pairing.py.
 */
#ifndef PYSTACK_PAIRING_H
#define PYSTACK_PAIRING_H

#include <stdbool.h>
#include <stdint.h>

struct batch {
	int64_t offset; /* of its first word */
	int64_t count;
	uint64_t base;   /* counter: all its times are later */
	uint32_t thread; /* from 0, rising: the batches of a thread stand together */
	uint32_t flags;  /* enum batch_flag */
};

enum batch_flag {
	LOST_BEFORE = 1 << 0, /* a batch of the thread is missing in front of this one */
	CUT_SHORT = 1 << 1,   /* the thread may have been killed while it stored the last words */
};

struct knot {
	uint64_t counter;
	int64_t ns;
};

struct definition {
	uint32_t code_id;
	uint32_t is_c;
	int64_t offset; /* of its text, in words */
	int64_t count;
};

struct change {
	uint32_t code_id;
	uint32_t promoted;
	int64_t ns;
};

/* In the order of tables.CALL_KINDS, but for the last, which is there while a thread is read. */
enum call_kind { CALL, RESUME, CONTINUED, DROPPED };

/* A stack of a thread; its open calls are the row `top` and that row's parents. */
struct context {
	int64_t top;
	int64_t depth;
	int64_t hidden; /* open calls below these that have no rows */
	bool touched;
};

/* The columns of the rows. */
struct rows {
	int64_t *start, *duration, *self, *parent;
	int32_t *depth;
	uint32_t *code;
	uint8_t *kind, *complete;
};

struct found {
	int64_t rows, definitions, changes;
	int64_t unpaired;   /* ends of calls that did not begin */
	int64_t damaged;    /* words that mean nothing */
	int64_t open;       /* calls that did not end */
	int64_t left_out;   /* open calls that went on without a row */
	int64_t short_kept; /* calls that went on on another stack, and are counted, too */
	int64_t gaps, gap_ns;
};

struct pairing {
	const unsigned char *words;
	const struct batch *batches;
	int64_t word_count, batch_count, thread_count;
	struct found found;

	/* In the second pass, which has room for what the first one found. */
	struct found room;
	struct rows rows;
	struct definition *definitions;
	struct change *changes;
	int64_t *thread_rows;
	const struct knot *knots;
	int64_t knot_count, end_ns;

	int64_t continued_left; /* rows that may still be used for calls that go on */

	/* Of the thread at hand. */
	struct context *contexts;
	uint32_t *touched, touched_count, context_room, current;
	uint64_t last;    /* counter */
	int64_t last_ns;  /* no row of the thread has a later time */
	int64_t gap_from; /* -1: no gap is open */
	bool has_dropped; /* rows that are to be taken out */
	int64_t knot;     /* the one before `last` */
	double slope;     /* ns per tick behind it */
};

/*
 * Walk all words, to find out how many rows they make or, with `fill`, to make them; -1 when
 * there is no memory, or not the room that the first walk asked for.
 */
int pairing_walk(struct pairing *p, bool fill);
/* Whether the batches lie in the words, thread by thread. */
bool pairing_batches_are_valid(const struct pairing *p);
/* Whether the knots rise, and are enough for a line. */
bool pairing_knots_are_valid(const struct pairing *p);

#endif
