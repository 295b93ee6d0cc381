// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * The sampler, and below it the program of calls mode.  A perf event on the CPU clock runs
 * pystack_sample() on each CPU; when the interrupted thread belongs to the target, the program
 * walks the interpreter's frames in the thread's own memory and puts one record into the ring
 * buffer.  The thread stands still meanwhile, so every stack is whole.
 *
 * Four programs, joined by tail calls because each then stays small for the
 * verifier:
 *
 *     pystack_sample    filter, native and kernel stacks
 *     pystack_walk      collect the frames, some at a time
 *     pystack_identify  code objects to ids, some frames at a time
 *     pystack_name      send the strings of code objects that were never seen
 *
 * What a code object is called is read at first sight, while the frame that runs it
 * keeps it alive.  Which code object it is must survive reuse of its address: from
 * 3.12 on co_version tells (with the addresses of its parts); before that, the key is
 * a hash of the contents themselves.
 *
 * Calls mode needs one program more, pystack_calls(), at the uprobe on the probe's site:
 * it copies a batch of calls that the recorded process itself has written.
 *
 * Here are the programs, and BCC's maps, for BCC takes neither from another file:
 *
 *     state.bpf.h    what is kept between two tail calls
 *     maps.bpf.h     the maps for clang -target bpf
 *     memory.bpf.h   counters, memory at an address, ids, whose thread this is
 *     native.bpf.h   native and kernel stacks
 *     walk.bpf.h     CPython's frames
 *     names.bpf.h    code objects and what they are called
 */
#include "compat.h"
#include "pystack_time.h"
#include "state.bpf.h"

/*
 * The maps and their uses, once for each compiler; the names of the functions are the
 * same.  config: whom to sample; counts: pst_stats; codes, stacks: what has an id.
 */
#ifdef BCC_SEC

BPF_ARRAY(config, struct pst_config, 1);
BPF_PERCPU_ARRAY(counts, struct counters, 1);
/* BCC makes code to print and to parse each element of a leaf, but bytes are one. */
struct scratch_bytes {
	char bytes[sizeof(struct scratch)];
};
BPF_PERCPU_ARRAY(scratches, struct scratch_bytes, 1);
BPF_TABLE("lru_hash", struct code_key, u32, codes, CODE_ENTRIES);
BPF_TABLE("lru_hash", u64, u32, stacks, STACK_ENTRIES);
BPF_RINGBUF_OUTPUT(ring, RING_PAGES);
BPF_PROG_ARRAY(programs, CALLS);

static __always_inline struct pst_config *config_get(void)
{
	u32 zero = 0;

	return config.lookup(&zero);
}

static __always_inline struct counters *counts_get(void)
{
	u32 zero = 0;

	return counts.lookup(&zero);
}

static __always_inline struct scratch *scratches_get(void)
{
	u32 zero = 0;

	return (struct scratch *)scratches.lookup(&zero);
}

static __always_inline u32 *codes_find(struct code_key *key)
{
	return codes.lookup(key);
}

static __always_inline long codes_add(struct code_key *key, u32 *id)
{
	return codes.insert(key, id);
}

static __always_inline void codes_remove(struct code_key *key)
{
	codes.delete(key);
}

static __always_inline u32 *stacks_find(u64 *hash)
{
	return stacks.lookup(hash);
}

static __always_inline void stacks_add(u64 *hash, u32 *id)
{
	stacks.insert(hash, id);
}

static __always_inline long ring_output(void *data, u64 size)
{
	return ring.ringbuf_output(data, size, BPF_RB_NO_WAKEUP);
}

static __always_inline void *ring_reserve(void)
{
	return ring.ringbuf_reserve(sizeof(struct pst_calls));
}

static __always_inline void ring_submit(void *record)
{
	ring.ringbuf_submit(record, BPF_RB_NO_WAKEUP);
}

static __always_inline void ring_discard(void *record)
{
	ring.ringbuf_discard(record, BPF_RB_NO_WAKEUP);
}

static __always_inline void tail_call(struct bpf_perf_event_data *ctx, u32 index)
{
	programs.call(ctx, index);
}

#else

#include "maps.bpf.h"

#endif

#include "memory.bpf.h"
#include "native.bpf.h"
#include "walk.bpf.h"
#include "names.bpf.h"

static __always_inline void submit(struct scratch *s)
{
	struct pst_sample *sample = &s->sample;
	u32 n = sample->frame_count;
	u32 size;

	if (n > PST_MAX_FRAMES)
		return;
	size = sizeof(*sample) - sizeof(sample->frames) + n * sizeof(struct pst_frame);
	sample->header.size = size;
	if (ring_output(sample, size))
		count(PST_COUNT_RING_FULL);
}

PST_PROGRAM(pystack_sample)
{
	struct pst_config *cfg = config_get();
	struct bpf_pidns_info ids = {};
	struct scratch *s;
	struct pst_sample *sample;
	long size;
	u64 task;

	count(PST_COUNT_TICKS);
	if (!cfg || !is_target(cfg, &ids))
		return 0;
	count(PST_COUNT_HITS);
	task = bpf_get_current_task();
	if (cfg->check_rights && rights_changed(cfg, task)) {
		count(PST_COUNT_DENIED);
		return 0;
	}
	s = scratches_get();
	if (!s)
		return 0;
	if (s->recording != cfg->recording) {
		s->recording = cfg->recording;
		s->code_count = s->stack_count = 0;
	}
	sample = &s->sample;
	sample->header.type = PST_SAMPLE;
	sample->header.flags = 0;
	sample->ts_ns = bpf_ktime_get_ns();
	sample->pid = ids.tgid;
	sample->tid = ids.pid;
	sample->cpu = bpf_get_smp_processor_id();
	sample->frame_count = 0;
	sample->kernel_stack = -1;
	bpf_get_current_comm(sample->comm, sizeof(sample->comm));

	if (ctx->regs.cs & 3) {
		size = native_stack(ctx, &s->addresses);
	} else {
		sample->header.flags |= PST_KERNEL_MODE;
		if (cfg->kernel_stacks) {
			size = bpf_get_stack(ctx, s->addresses.frames, sizeof(s->addresses.frames),
					     0);
			sample->kernel_stack = stack_id(cfg, s, size, PST_KERNEL);
			if (sample->kernel_stack == -2)
				sample->header.flags |= PST_KERNEL_MISSING;
		}
		size = bpf_get_stack(ctx, s->addresses.frames, sizeof(s->addresses.frames),
				     BPF_F_USER_STACK);
	}
	sample->native_stack = stack_id(cfg, s, size, PST_MODULE);
	if (sample->native_stack == -2)
		sample->header.flags |= PST_NATIVE_MISSING;

	if (!cfg->python_ready) {
		sample->header.flags |= PST_NO_PYTHON;
	} else if (!begin_walk(cfg, s)) {
		s->walk_again = 0;
		s->identified = 0;
		s->pending_count = 0;
		tail_call(ctx, CALL_WALK);
		/* Only reached when the call failed: there are no frames. */
		sample->header.flags |= PST_UNREADABLE;
	}
	submit(s);
	return 0;
}

PST_PROGRAM(pystack_walk)
{
	struct pst_config *cfg = config_get();
	struct scratch *s = scratches_get();

	if (!cfg || !s)
		return 0;
	if (s->walk_again) {
		s->walk_again = 0;
		if (begin_walk(cfg, s)) {
			submit(s);
			return 0;
		}
		s->next_frame = leave_innermost(s, &cfg->layout);
	}
	if (walk(cfg, s)) {
		/* Frames that have no code may lead to each other for ever. */
		if (++s->walks < MAX_WALKS)
			tail_call(ctx, CALL_WALK);
		s->sample.header.flags |= PST_UNREADABLE;
	}
	if (s->sample.frame_count) {
		tail_call(ctx, CALL_IDENTIFY);
		/* Only reached when the call failed: no frame has a name. */
		s->sample.header.flags |= PST_UNNAMED;
	}
	submit(s);
	return 0;
}

PST_PROGRAM(pystack_identify)
{
	struct pst_config *cfg = config_get();
	struct scratch *s = scratches_get();
	struct pst_sample *sample;
	u64 code, before = 0;
	u32 at, n;

	if (!cfg || !s)
		return 0;
	sample = &s->sample;
	n = sample->frame_count;
	at = s->identified;
	s->file.object = 0;
	for (int i = 0; i < IDENTIFY_FRAMES; i++, at++) {
		if (at >= n)
			break;
		code = s->codes[at & (PST_MAX_FRAMES - 1)];
		if (code != before) {
			before = code;
			s->code_id = 0;
			if (!identify(s, &cfg->layout, code, cfg->epoch)) {
				find_code_id(cfg, s);
			} else if (at < s->evaluation.frame_count) {
				s->walk_again = 1;
				break;
			} else {
				sample->header.flags |= PST_UNREADABLE;
			}
		}
		sample->frames[at & (PST_MAX_FRAMES - 1)].code_id = s->code_id;
	}
	if (s->walk_again) {
		/* What has been found so far of codes is right, and stays pending. */
		sample->header.flags &= ~(PST_TOO_DEEP | PST_UNREADABLE);
		sample->frame_count = 0;
		s->identified = 0;
		tail_call(ctx, CALL_WALK);
		sample->header.flags |= PST_UNREADABLE;
		submit(s);
		return 0;
	}
	s->identified = at;
	if (at < n) {
		tail_call(ctx, CALL_IDENTIFY);
		sample->header.flags |= PST_UNNAMED;
	} else if (s->pending_count) {
		s->naming.at = 0;
		s->naming.part = 0;
		s->naming.begun = 0;
		tail_call(ctx, CALL_NAME);
		sample->header.flags |= PST_UNNAMED;
	}
	submit(s);
	return 0;
}

PST_PROGRAM(pystack_name)
{
	struct pst_config *cfg = config_get();
	struct scratch *s = scratches_get();
	struct naming *work;
	struct pending_code *p;

	if (!cfg || !s)
		return 0;
	work = &s->naming;
	for (int i = 0; i < NAME_STEPS; i++) {
		if (work->at >= s->pending_count)
			break;
		p = &s->pending[work->at & (PST_MAX_FRAMES - 1)];
		if ((!work->begun && begin_part(s, &cfg->layout, p)) || send_piece(s, p)) {
			/* To be tried again when it is met again. */
			codes_remove(&p->key);
			count(PST_COUNT_NAME_LOST);
			s->sample.header.flags |= PST_UNNAMED;
			work->part = PST_PARTS;
			work->begun = 0;
		} else if (work->part >= PST_PARTS) {
			remember_code(s, p);
		}
		if (work->part >= PST_PARTS) {
			work->part = 0;
			work->at++;
		}
	}
	if (work->at < s->pending_count) {
		tail_call(ctx, CALL_NAME);
		/* Too many at once: the rest must be met again. */
		s->sample.header.flags |= PST_UNNAMED;
		for (int i = 0; i < PST_MAX_FRAMES; i++) {
			if (work->at >= s->pending_count)
				break;
			codes_remove(&s->pending[work->at & (PST_MAX_FRAMES - 1)].key);
			count(PST_COUNT_NAME_LOST);
			work->at++;
		}
	}
	submit(s);
	return 0;
}

/*
 * Copy a batch up to its last word: what lies behind may never have been touched, and can't
 * be read here.  A count that no batch can have is the drain's to refuse.
 */
static __always_inline long read_batch(struct pst_batch *to, u64 from)
{
	u64 count;

	if (pst_read_user(to, __builtin_offsetof(struct pst_batch, words), (void *)from))
		return -1;
	count = to->count;
	PST_OPAQUE(count);
	if (count > PST_BATCH_WORDS)
		count = PST_BATCH_WORDS;
	return pst_read_user(to->words, count * sizeof(u64),
			     (void *)(from + __builtin_offsetof(struct pst_batch, words)));
}

/* At the probe's site, whose first argument is a batch. */
PST_PROBE_PROGRAM(pystack_calls)
{
	struct pst_config *cfg = config_get();
	struct bpf_pidns_info ids = {};
	struct pst_calls *record;

	if (!cfg || !is_target(cfg, &ids))
		return 0;
	if (cfg->check_rights && rights_changed(cfg, bpf_get_current_task())) {
		count_lost_batch();
		return 0;
	}
	record = ring_reserve();
	if (!record) {
		count_lost_batch();
		return 0;
	}
	record->header.size = sizeof(*record);
	record->header.type = PST_CALLS;
	record->header.flags = 0;
	record->ts_ns = bpf_ktime_get_ns();
	record->pid = ids.tgid;
	record->tid = ids.pid;
	record->cpu = bpf_get_smp_processor_id();
	record->reserved = 0;
	bpf_get_current_comm(record->comm, sizeof(record->comm));
	if (read_batch(&record->batch, PST_ARGUMENT(ctx))) {
		count_lost_batch();
		ring_discard(record);
		return 0;
	}
	ring_submit(record);
	return 0;
}
