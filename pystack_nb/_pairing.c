/* SPDX-License-Identifier: MIT */
/*
 * The words of calls mode into rows; bpf/pystack_time.h says what a word is.
 *
 * Any word may be wrong: nothing is read or written by one without a look, and each is
 * worked on once.  There is no stack beside the rows: an open call is a row, and what it was
 * called by is that row's parent.
 */
#include "_pairing.h"

#include <stdlib.h>
#include <string.h>

#include "pystack_time.h"

enum { OPERAND = (1 << PST_OPERAND_BITS) - 1, ARGUMENT_SHIFT = 4, OTHER_KINDS = 15 };

/* Each is compiled twice: for the first walk, and for the one that fills. */
#define ALWAYS_INLINE inline __attribute__((always_inline))

#define TIME_MASK     ((1ull << PST_TIME_BITS) - 1)
#define LARGEST_NS    ((double)((int64_t)1 << 61))
/* So many rows for calls that go on, and two more for each word: enough but for an attack. */
#define FREE_ROWS     65536

static inline uint64_t word_at(const struct pairing *p, int64_t at)
{
	uint64_t word;

	memcpy(&word, p->words + at * sizeof(word), sizeof(word));
	return word;
}

static void use_knot(struct pairing *p, int64_t number)
{
	const struct knot *k = p->knots + number;

	p->knot = number;
	p->slope = (double)(k[1].ns - k[0].ns) / (double)(k[1].counter - k[0].counter);
}

static void find_knot(struct pairing *p)
{
	int64_t low = 0, high = p->knot_count - 2;

	while (low < high) {
		int64_t middle = (low + high + 1) / 2;

		if (p->knots[middle].counter <= p->last)
			low = middle;
		else
			high = middle - 1;
	}
	use_knot(p, low);
}

/* The time at hand in ns, on the line through the knots around it. */
static inline int64_t now_ns(struct pairing *p)
{
	while (p->knot + 2 < p->knot_count && p->last >= p->knots[p->knot + 1].counter)
		use_knot(p, p->knot + 1);

	const struct knot *k = p->knots + p->knot;
	double ticks = p->last >= k->counter ? (double)(p->last - k->counter)
					     : -(double)(k->counter - p->last);
	double distance = ticks * p->slope;

	distance = distance < LARGEST_NS ? distance : LARGEST_NS;
	distance = distance > -LARGEST_NS ? distance : -LARGEST_NS;
	if (k->ns + (int64_t)distance > p->last_ns)
		p->last_ns = k->ns + (int64_t)distance;
	return p->last_ns;
}

/* Take the time in a word; one that is less than the one before is equal to it. */
static inline void step(struct pairing *p, uint64_t word)
{
	uint64_t ahead = (word - p->last) & TIME_MASK;

	if (ahead < 1ull << (PST_TIME_BITS - 1) && p->last + ahead > p->last)
		p->last += ahead;
}

static inline void open_row(struct pairing *p, int64_t row, int64_t parent, int64_t depth,
			    uint32_t code, enum call_kind kind)
{
	p->rows.start[row] = p->last_ns;
	p->rows.self[row] = 0; /* what the calls in it take, until it ends */
	p->rows.parent[row] = parent;
	p->rows.depth[row] = (int32_t)depth;
	p->rows.code[row] = code;
	p->rows.kind[row] = kind;
}

/* End a row; the one that called it. */
static inline int64_t close_row(struct pairing *p, int64_t row, int64_t ns, bool complete)
{
	int64_t parent = p->rows.parent[row], duration = ns - p->rows.start[row];

	p->rows.duration[row] = duration;
	p->rows.self[row] = duration - p->rows.self[row];
	p->rows.complete[row] = complete;
	if (parent >= 0)
		p->rows.self[parent] += duration;
	return parent;
}

/* End the rows of a stack, whose calls may still be open. */
static void close_rows(struct pairing *p, const struct context *c, int64_t ns, bool complete)
{
	for (int64_t row = c->top; row >= 0;)
		row = close_row(p, row, ns, complete);
}

static ALWAYS_INLINE int enter(struct pairing *p, uint32_t code, enum call_kind kind, bool fill)
{
	struct context *c = &p->contexts[p->current];
	int64_t row = p->found.rows;

	if (fill) {
		if (row >= p->room.rows)
			return -1;
		now_ns(p);
		open_row(p, row, c->top, c->depth, code, kind);
		c->top = row;
	}
	c->depth++;
	p->found.rows++;
	return 0;
}

/*
 * The innermost call ends and is to have no row: what it called belongs to the one that called it.
 * Its row goes when the thread ends; a call of which more rows are shown already keeps them.
 */
static int64_t drop_row(struct pairing *p, int64_t row)
{
	int64_t parent = p->rows.parent[row];

	if (p->rows.kind[row] == CONTINUED) {
		p->found.short_kept++;
		return close_row(p, row, now_ns(p), true);
	}
	if (parent >= 0)
		p->rows.self[parent] += p->rows.self[row];
	p->rows.kind[row] = DROPPED;
	p->has_dropped = true;
	return parent;
}

static void move_row(struct rows *rows, int64_t from, int64_t to)
{
	rows->start[to] = rows->start[from];
	rows->duration[to] = rows->duration[from];
	rows->self[to] = rows->self[from];
	rows->code[to] = rows->code[from];
	rows->kind[to] = rows->kind[from];
	rows->complete[to] = rows->complete[from];
}

/*
 * Take the dropped rows of a thread, which begin at `first`, out; -1 when there is no memory. What
 * called a row is the last one before it that is one less deep, also behind a switch of stacks.
 */
static int take_out_dropped(struct pairing *p, int64_t first)
{
	int64_t end = p->found.rows, deepest = 0, to = first;

	for (int64_t row = first; row < end; row++)
		if (p->rows.depth[row] > deepest)
			deepest = p->rows.depth[row];

	/* By the depth that a row had, from -1: the last one there, or what is left around it. */
	struct left {
		int64_t row;
		int32_t depth;
	} *left = malloc((deepest + 2) * sizeof(*left));

	if (!left)
		return -1;
	left[0] = (struct left){.row = -1, .depth = -1};
	for (int64_t row = first; row < end; row++) {
		const struct left *caller = &left[p->rows.depth[row]];
		struct left *own = &left[p->rows.depth[row] + 1];

		if (p->rows.kind[row] == DROPPED) {
			*own = *caller;
			continue;
		}
		*own = (struct left){.row = to, .depth = caller->depth + 1};
		move_row(&p->rows, row, to);
		p->rows.parent[to] = caller->row;
		p->rows.depth[to] = own->depth;
		to++;
	}
	free(left);
	p->found.rows = to;
	p->has_dropped = false;
	return 0;
}

static ALWAYS_INLINE void leave(struct pairing *p, uint32_t how, bool fill)
{
	struct context *c = &p->contexts[p->current];

	if (c->depth > 0) {
		if (fill)
			c->top = how & PST_SHORT ? drop_row(p, c->top)
						 : close_row(p, c->top, now_ns(p), true);
		c->depth--;
	} else if (c->hidden > 0) {
		c->hidden--;
	} else {
		p->found.unpaired++;
	}
}

/* Make new rows for the open calls of a stack that goes on. */
static int go_on(struct pairing *p, struct context *c, bool fill)
{
	int64_t first = p->found.rows, old = c->top;

	if (c->depth > p->continued_left) {
		p->found.left_out += c->depth;
		c->hidden += c->depth;
		c->depth = 0;
		c->top = -1;
		return 0;
	}
	p->continued_left -= c->depth;
	p->found.rows += c->depth;
	if (!fill || !c->depth)
		return 0;
	if (p->found.rows > p->room.rows)
		return -1;
	c->top = p->found.rows - 1;
	for (int64_t i = c->depth - 1; i >= 0; i--) {
		open_row(p, first + i, i ? first + i - 1 : -1, i, p->rows.code[old], CONTINUED);
		old = p->rows.parent[old];
	}
	return 0;
}

static int use_context(struct pairing *p, uint32_t number)
{
	while (number >= p->context_room) {
		uint32_t old = p->context_room, room = old ? 2 * old : 64;
		struct context *contexts = realloc(p->contexts, room * sizeof(*contexts));

		if (!contexts)
			return -1;
		p->contexts = contexts;
		memset(contexts + old, 0, (room - old) * sizeof(*contexts));

		uint32_t *touched = realloc(p->touched, room * sizeof(*touched));

		if (!touched)
			return -1;
		p->touched = touched;
		p->context_room = room;
	}
	if (!p->contexts[number].touched) {
		p->contexts[number] = (struct context){.top = -1, .touched = true};
		p->touched[p->touched_count++] = number;
	}
	p->current = number;
	return 0;
}

static int switch_to(struct pairing *p, uint32_t number, bool fill)
{
	if (number == p->current)
		return 0;
	if (fill)
		close_rows(p, &p->contexts[p->current], now_ns(p), true);
	if (use_context(p, number))
		return -1;
	return go_on(p, &p->contexts[number], fill);
}

static void end_gap(struct pairing *p, int64_t ns)
{
	if (p->gap_from >= 0 &&
	    __builtin_add_overflow(p->found.gap_ns, ns - p->gap_from, &p->found.gap_ns))
		p->found.gap_ns = INT64_MAX; /* of damaged threads */
	p->gap_from = -1;
}

/* What is open in the thread ends at `ns`, since its end was not seen. */
static void abandon(struct pairing *p, int64_t ns, bool fill)
{
	for (uint32_t i = 0; i < p->touched_count; i++) {
		struct context *c = &p->contexts[p->touched[i]];

		p->found.open += c->depth;
		if (fill && p->touched[i] == p->current)
			close_rows(p, c, ns, false);
		else if (fill)
			/* Suspended: its rows ended when the thread left it. */
			for (int64_t row = c->top; row >= 0; row = p->rows.parent[row])
				p->rows.complete[row] = false;
		c->touched = false;
	}
	p->touched_count = 0;
	end_gap(p, ns);
}

static int define(struct pairing *p, uint64_t word, int64_t text, int64_t count, bool fill)
{
	if (fill && p->found.definitions >= p->room.definitions)
		return -1;
	if (fill)
		p->definitions[p->found.definitions] = (struct definition){
			.code_id = word & OPERAND,
			.is_c = word >> (PST_TIME_BITS - 1) & 1,
			.offset = text,
			.count = count,
		};
	p->found.definitions++;
	return 0;
}

static int change(struct pairing *p, uint64_t code_id, bool promoted, bool fill)
{
	if (fill && p->found.changes >= p->room.changes)
		return -1;
	if (fill)
		p->changes[p->found.changes] = (struct change){
			.code_id = code_id & OPERAND,
			.promoted = promoted,
			.ns = now_ns(p),
		};
	p->found.changes++;
	return 0;
}

/*
 * A word that is neither an entry nor an exit, at `at` with `left` more behind it: how many of
 * those belong to it (perhaps more than there are), or -1.
 */
static int64_t other(struct pairing *p, uint64_t word, int64_t at, int64_t left, bool fill)
{
	uint32_t operand = word >> PST_TIME_BITS & OPERAND, argument = operand >> ARGUMENT_SHIFT;
	uint32_t kind = operand & OTHER_KINDS;

	switch (kind) {
	case PST_WORD_TIME:
		if (left && word_at(p, at + 1) > p->last)
			p->last = word_at(p, at + 1);
		return 1;
	case PST_WORD_CODE:
		if (argument <= left && define(p, word, at + 1, argument, fill))
			return -1;
		return argument;
	case PST_WORD_SWITCH:
		step(p, word);
		return switch_to(p, argument, fill);
	case PST_WORD_DEMOTE:
	case PST_WORD_PROMOTE:
		step(p, word);
		if (left && change(p, word_at(p, at + 1), kind == PST_WORD_PROMOTE, fill))
			return -1;
		return 1;
	case PST_WORD_GAP:
	case PST_WORD_GAP_END:
		step(p, word);
		if (fill)
			end_gap(p, now_ns(p));
		if (kind == PST_WORD_GAP) {
			p->found.gaps++;
			p->gap_from = fill ? p->last_ns : -1;
		}
		return 0;
	default:
		p->found.damaged++;
		return 0;
	}
}

static ALWAYS_INLINE int walk_batch(struct pairing *p, const struct batch *b, bool fill)
{
	const int64_t end = b->offset + b->count;

	if (b->base > p->last)
		p->last = b->base;
	for (int64_t at = b->offset; at < end; at++) {
		uint64_t word = word_at(p, at);
		uint32_t kind = word >> PST_KIND_SHIFT;

		if (kind == PST_OTHER) {
			int64_t more = other(p, word, at, end - at - 1, fill);

			if (more < 0)
				return -1;
			if (more >= end - at && !(b->flags & CUT_SHORT))
				p->found.damaged++;
			at += more;
			continue;
		}
		if (fill)
			step(p, word);
		if (kind == PST_LEAVE)
			leave(p, word >> PST_TIME_BITS & OPERAND, fill);
		else if (enter(p, word >> PST_TIME_BITS & OPERAND,
			       kind == PST_RESUME ? RESUME : CALL, fill))
			return -1;
	}
	return 0;
}

static int begin_thread(struct pairing *p, const struct batch *b)
{
	p->last = b->base;
	p->last_ns = 0;
	p->gap_from = -1;
	if (p->knots)
		find_knot(p);
	return use_context(p, 0);
}

static int end_thread(struct pairing *p, const struct batch *b, int64_t first, bool fill)
{
	if (fill)
		now_ns(p);
	abandon(p, p->last_ns > p->end_ns ? p->last_ns : p->end_ns, fill);
	if (p->has_dropped && take_out_dropped(p, first))
		return -1;
	if (fill)
		p->thread_rows[b->thread] = p->found.rows - first;
	return 0;
}

static ALWAYS_INLINE int walk(struct pairing *p, bool fill)
{
	int64_t first = 0;

	p->continued_left = 2 * p->word_count + FREE_ROWS;
	for (int64_t i = 0; i < p->batch_count; i++) {
		const struct batch *b = p->batches + i;

		if (!i || b->thread != b[-1].thread) {
			if (i && end_thread(p, b - 1, first, fill))
				return -1;
			first = p->found.rows;
			if (begin_thread(p, b))
				return -1;
		} else if (b->flags & LOST_BEFORE) {
			abandon(p, fill ? now_ns(p) : 0, fill);
			if (use_context(p, p->current))
				return -1;
		}
		if (walk_batch(p, b, fill))
			return -1;
	}
	return p->batch_count ? end_thread(p, p->batches + p->batch_count - 1, first, fill) : 0;
}

int pairing_walk(struct pairing *p, bool fill)
{
	int failed = fill ? walk(p, true) : walk(p, false);

	free(p->contexts);
	free(p->touched);
	return failed;
}

bool pairing_batches_are_valid(const struct pairing *p)
{
	for (int64_t i = 0; i < p->batch_count; i++) {
		const struct batch *b = p->batches + i;

		if (b->offset < 0 || b->count < 0 || b->offset > p->word_count ||
		    b->count > p->word_count - b->offset || b->thread >= p->thread_count ||
		    (i && b->thread < b[-1].thread))
			return false;
	}
	return true;
}

bool pairing_knots_are_valid(const struct pairing *p)
{
	for (int64_t i = 0; i < p->knot_count; i++) {
		const struct knot *k = p->knots + i;

		if (k->ns < 0 || k->ns > (int64_t)1 << 61 ||
		    (i && (k->counter <= k[-1].counter || k->ns < k[-1].ns)))
			return false;
	}
	return p->knot_count >= 2;
}
