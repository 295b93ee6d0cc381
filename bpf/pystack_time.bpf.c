// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * The sampler, and below it the program of calls mode.  A perf event on the CPU clock runs
 * pystack_sample() on each CPU; when the interrupted thread belongs to the target, the program
 * walks the interpreter's frames in the thread's own memory and puts one record into the ring
 * buffer.  The thread stands still meanwhile, so every stack is whole.
 *
 * Three programs, joined by tail calls because each then stays small for the
 * verifier:
 *
 *     pystack_sample    filter, native and kernel stacks, collect the frames
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
 */
#include "compat.h"
#include "pystack_time.h"

enum {
	RING_PAGES = 4096, /* 16 MiB: twice what the probe lets be on its way */
	CODE_ENTRIES = 65536,
	STACK_ENTRIES = 32768,
	OBJECT_SIZE = 256, /* bytes of a frame or code object that may be looked at */
	DIGEST_SIZE = 512, /* of a string without a hash: this much at each end */
	SHORT_SIZE = 256,  /* of a line table that takes one read, with its head */
	IDENTIFY_FRAMES = 16,
	NAME_STEPS = 24,
	LARGEST_ID = 0x7fffffff,
	LARGEST_FRAME = 1 << 20, /* of a native function; what is further away is no frame */
	SUID_DUMP_USER = 1,
	DUMPABLE_MASK = 3,
};

enum tail_call {
	CALL_IDENTIFY = 0,
	CALL_NAME = 1,
};

struct code_key {
	u64 address;
	u64 digest;
};

struct pending_code {
	struct code_key key;
	u32 code_id;
	u32 reserved;
};

/* One of the strings of a code object: where it lies, as pst_text tells it. */
struct part {
	u64 source;
	u64 hash; /* of the contents, if the object keeps it; NO_HASH: not computed yet */
	u32 total;
	u32 char_size;
};

/* Where pystack_name() stands between two tail calls. */
struct naming {
	u32 at; /* index into pending */
	u32 part;
	u32 begun; /* `where` is known */
	u32 offset;
	struct part where;
};

/*
 * The C evaluations that a thread is in, up to 3.12: each has a CFrame, which knows the
 * innermost Python frame and the CFrame around it.  An evaluation hangs its CFrame
 * into the thread state before it has filled in the frame (Python/ceval.c), so for some
 * nanoseconds the innermost one leads anywhere.  The first frame of an evaluation must
 * therefore lead back to the frame that the CFrame around it knows.
 */
struct evaluation {
	u64 around;    /* the CFrame around the present one */
	u64 calling;   /* the frame that it knows */
	u32 innermost; /* whether the walk is still in the innermost evaluation */
	u32 reserved;
};

struct scratch {
	/* The walk's state is kept in memory: the verifier follows each value of a register. */
	struct evaluation evaluation;
	struct pst_sample sample;
	u64 codes[PST_MAX_FRAMES];
	u32 identified;
	u32 pending_count;
	struct pending_code pending[PST_MAX_FRAMES];
	struct naming naming;
	struct pst_code code_record;
	struct pst_text text;
	struct pst_addresses addresses;
	u8 frame[OBJECT_SIZE];
	u8 code[OBJECT_SIZE];
	u8 contents[DIGEST_SIZE];
	u32 code_count; /* ids given out by this CPU, in this recording */
	u32 stack_count;
	u32 recording;
};

struct counters {
	u64 at[PST_COUNTERS];
};

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
BPF_PROG_ARRAY(programs, 2);

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

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct pst_config);
} config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct counters);
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, CODE_ENTRIES);
	__type(key, struct code_key);
	__type(value, u32);
} codes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, STACK_ENTRIES);
	__type(key, u64);
	__type(value, u32);
} stacks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING_PAGES * 4096);
} ring SEC(".maps");

int pystack_identify(struct bpf_perf_event_data *ctx);
int pystack_name(struct bpf_perf_event_data *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 2);
	__uint(key_size, sizeof(u32));
	__array(values, int(struct bpf_perf_event_data *));
} programs SEC(".maps") = {
	.values = {[CALL_IDENTIFY] = pystack_identify, [CALL_NAME] = pystack_name},
};

static __always_inline struct pst_config *config_get(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&config, &zero);
}

static __always_inline struct counters *counts_get(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&counts, &zero);
}

static __always_inline struct scratch *scratches_get(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&scratches, &zero);
}

static __always_inline u32 *codes_find(struct code_key *key)
{
	return bpf_map_lookup_elem(&codes, key);
}

static __always_inline long codes_add(struct code_key *key, u32 *id)
{
	return bpf_map_update_elem(&codes, key, id, BPF_NOEXIST);
}

static __always_inline void codes_remove(struct code_key *key)
{
	bpf_map_delete_elem(&codes, key);
}

static __always_inline u32 *stacks_find(u64 *hash)
{
	return bpf_map_lookup_elem(&stacks, hash);
}

static __always_inline void stacks_add(u64 *hash, u32 *id)
{
	bpf_map_update_elem(&stacks, hash, id, BPF_NOEXIST);
}

static __always_inline long ring_output(void *data, u64 size)
{
	return bpf_ringbuf_output(&ring, data, size, BPF_RB_NO_WAKEUP);
}

static __always_inline void *ring_reserve(void)
{
	return bpf_ringbuf_reserve(&ring, sizeof(struct pst_calls), 0);
}

static __always_inline void ring_submit(void *record)
{
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
}

static __always_inline void ring_discard(void *record)
{
	bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
}

static __always_inline void tail_call(struct bpf_perf_event_data *ctx, u32 index)
{
	bpf_tail_call(ctx, &programs, index);
}

#endif

static __always_inline void count(u32 counter)
{
	struct counters *c = counts_get();

	if (c)
		c->at[counter & (PST_COUNTERS - 1)]++;
}

/* Of pystack_calls(), which another thread's run may interrupt on the same CPU. */
static __always_inline void count_lost_batch(void)
{
	struct counters *c = counts_get();

	if (c)
		__sync_fetch_and_add(&c->at[PST_COUNT_CALLS_LOST], 1);
}

/* Fields at offsets that are known only at run time; the mask is for the verifier. */
static __always_inline u64 field64(const u8 *object, u32 offset)
{
	return *(const u64 *)(object + (offset & (OBJECT_SIZE - 8)));
}

static __always_inline u32 field32(const u8 *object, u32 offset)
{
	return *(const u32 *)(object + (offset & (OBJECT_SIZE - 4)));
}

static __always_inline u64 user64(u64 address)
{
	u64 value = 0;

	pst_read_user(&value, sizeof(value), (void *)address);
	return value;
}

static __always_inline u64 kernel64(u64 address)
{
	u64 value = 0;

	pst_read_kernel(&value, sizeof(value), (void *)address);
	return value;
}

static __always_inline u64 mix(u64 hash, u64 value)
{
	hash = (hash ^ value) * 0x9e3779b97f4a7c15ULL;
	return hash ^ (hash >> 29);
}

static __always_inline u64 mix_words(u64 hash, const u8 *words, u32 size)
{
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < DIGEST_SIZE; i += 8) {
		if (i >= size)
			break;
		hash = mix(hash, *(const u64 *)(words + i));
	}
	return hash;
}

/* A number that no other CPU gives out; 0: there is none left. */
static __always_inline u32 new_id(const struct pst_config *cfg, u32 *given)
{
	u64 id = (u64)(*given + 1) * cfg->cpus + bpf_get_smp_processor_id();

	if (id > LARGEST_ID)
		return 0;
	*given += 1;
	return (u32)id;
}

/*
 * The rule of ptrace_may_access() was asked when the recording began; here is only
 * looked whether what it was asked about still holds, since a set-uid program may
 * have been executed a moment ago.
 */
static __always_inline int rights_changed(struct pst_config *cfg, u64 task)
{
	u64 cred = kernel64(task + PST_OFFSET(cfg, task_real_cred));
	u64 mm = kernel64(task + PST_OFFSET(cfg, task_mm));
	u32 ids[6] = {};

	if (!mm || pst_read_kernel(ids, sizeof(ids), (void *)(cred + PST_OFFSET(cfg, cred_ids))))
		return 1;
	for (int i = 0; i < 6; i++)
		if (ids[i] != cfg->ids[i])
			return 1;
	if (kernel64(cred + PST_OFFSET(cfg, cred_permitted)) & ~cfg->permitted)
		return 1;
	return (kernel64(mm + PST_OFFSET(cfg, mm_flags)) & DUMPABLE_MASK) != SUID_DUMP_USER;
}

/* Whether the current thread is one of the target; its ids as the target's namespace has them. */
static __always_inline int is_target(const struct pst_config *cfg, struct bpf_pidns_info *ids)
{
	return cfg->tgid &&
	       !bpf_get_ns_current_pid_tgid(cfg->pidns_dev, cfg->pidns_ino, ids, sizeof(*ids)) &&
	       ids->tgid == cfg->tgid;
}

/*
 * Follow the frame pointers of the user code that was interrupted; bytes put into `out`.
 * bpf_get_stack() does the same, but goes wherever the register points: in code
 * without frame pointers, which is most of CPython's, that is anywhere, up to 127 times.
 */
static __always_inline long native_stack(struct bpf_perf_event_data *ctx, struct pst_addresses *out)
{
	u64 below = PST_REGISTER(ctx, sp), at = PST_REGISTER(ctx, bp);
	u64 pair[2]; /* the caller's frame pointer, the return address */

	out->frames[0] = PST_REGISTER(ctx, ip);
	out->frame_count = 1;
	for (int i = 1; i < PST_MAX_NATIVE; i++) {
		if (at < below || at - below > LARGEST_FRAME || at & 7 ||
		    pst_read_user(pair, sizeof(pair), (void *)at) || !pair[1])
			break;
		out->frames[i] = pair[1];
		/* In memory, where the verifier does not follow each value of it. */
		out->frame_count = i + 1;
		below = at + sizeof(pair);
		at = pair[0];
	}
	return out->frame_count * sizeof(u64);
}

/* The id of the `size` bytes of a stack in s->addresses; -1: none, -2: it is not kept. */
static __always_inline s32 stack_id(const struct pst_config *cfg, struct scratch *s, long size,
				    u16 kind)
{
	struct pst_addresses *a = &s->addresses;
	u64 hash;
	u32 id, *known, n;

	if (!size)
		return -1;
	if (size < 0 || size > (long)sizeof(a->frames))
		return -2;
	n = (u32)size / 8;
	hash = mix(mix(kind + 1, cfg->epoch), n);
	for (u32 i = 0; i < PST_MAX_NATIVE; i++) {
		if (i >= n)
			break;
		hash = mix(hash, a->frames[i]);
	}
	known = stacks_find(&hash);
	if (known)
		return (s32)*known;
	id = new_id(cfg, &s->stack_count);
	if (!id)
		return -2;
	a->header.type = PST_ADDRESSES;
	a->header.flags = kind;
	a->header.size = sizeof(*a) - sizeof(a->frames) + (u32)size;
	a->stack_id = (s32)id;
	a->frame_count = n;
	if (ring_output(a, sizeof(*a) - sizeof(a->frames) + ((u32)size & 1023)))
		return -2;
	/* No matter if another CPU was first or the map is full: the id was told. */
	stacks_add(&hash, &id);
	return (s32)id;
}

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

static __always_inline void go_around(const struct pst_layout *at, struct evaluation *e)
{
	e->calling = e->around ? user64(e->around + at->current_frame) : 0;
	e->around = e->around ? user64(e->around + at->current_frame + 8) : 0;
}

/* Put the frames of the current thread into s->codes and s->sample.frames. */
static __always_inline void walk(struct pst_config *cfg, struct scratch *s, u64 task)
{
	struct pst_sample *sample = &s->sample;
	const struct pst_layout *at = &cfg->layout;
	u64 thread_pointer = kernel64(task + PST_OFFSET(cfg, task_fsbase));
	u64 state, thread, frame, code, instruction, previous;
	struct evaluation *e = &s->evaluation;
	u32 n, owner, entry;
	long failed;

	if (pst_read_user(&state, sizeof(state), (void *)(thread_pointer + at->thread_state_tls)) ||
	    (state && pst_read_user(&thread, sizeof(thread), (void *)(state + at->thread_id)))) {
		sample->header.flags |= PST_UNREADABLE;
		return;
	}
	/* A slot that holds something else must not send the walk astray. */
	if (!state || thread != thread_pointer) {
		sample->header.flags |= PST_NO_PYTHON;
		return;
	}
	frame = state;
	e->innermost = at->cframe != 0;
	if (at->cframe) {
		frame = user64(state + at->cframe);
		e->around = user64(frame + at->current_frame + 8);
		go_around(at, e);
	}
	frame = user64(frame + at->current_frame);

	for (int i = 0; i < 2 * PST_MAX_FRAMES; i++) {
		if (!frame)
			break;
		n = sample->frame_count;
		/* No layout needs more than this of a frame. */
		failed = pst_read_user(s->frame, 80, (void *)frame);
		code = field64(s->frame, at->frame_code);
		if (e->innermost) {
			/* It may be anything: only what runs code is a frame. */
			if (failed || (code && user64(code + 8) != at->code_type)) {
				e->innermost = 0;
				frame = e->calling;
				sample->frame_count = 0;
				go_around(at, e);
				continue;
			}
		} else if (failed) {
			sample->header.flags |= PST_UNREADABLE;
			break;
		}
		instruction = field64(s->frame, at->frame_instruction);
		previous = field64(s->frame, at->frame_previous);
		owner = s->frame[at->frame_owner & (OBJECT_SIZE - 1)];
		entry = at->frame_entry ? s->frame[at->frame_entry & (OBJECT_SIZE - 1)]
					: owner == at->owner_cstack;
		/* Not the interpreter's own entry frames, nor frames being torn down. */
		if (owner != at->owner_cstack && code) {
			if (n >= PST_MAX_FRAMES) {
				sample->header.flags |= PST_TOO_DEEP;
				break;
			}
			s->codes[n & (PST_MAX_FRAMES - 1)] = code;
			sample->frames[n & (PST_MAX_FRAMES - 1)].code_id = 0;
			sample->frames[n & (PST_MAX_FRAMES - 1)].instruction =
				(s32)((long)(instruction - code - at->code_start) >> 1);
			sample->frame_count = n + 1;
		}
		frame = previous;
		if (at->cframe && entry) {
			if (previous != e->calling) {
				if (!e->innermost) {
					sample->header.flags |= PST_UNREADABLE;
					break;
				}
				/* The evaluation has not begun: its caller is what executes. */
				sample->frame_count = 0;
				frame = e->calling;
			}
			e->innermost = 0;
			go_around(at, e);
		}
	}
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

	if (cfg->python_ready)
		walk(cfg, s, task);
	else
		sample->header.flags |= PST_NO_PYTHON;
	if (sample->frame_count) {
		s->identified = 0;
		s->pending_count = 0;
		tail_call(ctx, CALL_IDENTIFY);
		/* Only reached when the call failed: no frame has a name. */
		sample->header.flags |= PST_UNNAMED;
	}
	submit(s);
	return 0;
}

/* Hash of up to 2 * DIGEST_SIZE bytes of memory: all, or the head and the tail. */
static __always_inline int digest_bytes(struct scratch *s, u64 address, u64 size, u64 *hash)
{
	u64 h = mix(*hash, size);
	u64 n = size;

	PST_OPAQUE(n);
	if (n > DIGEST_SIZE)
		n = DIGEST_SIZE;
	__builtin_memset(s->contents, 0, DIGEST_SIZE);
	if (pst_read_user(s->contents, n, (void *)address))
		return -1;
	h = mix_words(h, s->contents, n > 128 ? DIGEST_SIZE : 128);
	if (size > DIGEST_SIZE) {
		if (pst_read_user(s->contents, DIGEST_SIZE, (void *)(address + size - DIGEST_SIZE)))
			return -1;
		h = mix_words(h, s->contents, DIGEST_SIZE);
	}
	*hash = h;
	return 0;
}

static __always_inline int read_code(struct scratch *s, const struct pst_layout *at, u64 code)
{
	/* Up to and with co_linetable, the last member that is looked at. */
	if (pst_read_user(s->code, 144, (void *)code))
		return -1;
	return field64(s->code, 8) == at->code_type ? 0 : -1;
}

#define NO_HASH ((u64) - 1)

/* What str and bytes have alike: after the object's head the length, then the hash. */
struct string_head {
	u64 length;
	u64 hash;
	u64 state; /* of a str */
};

/* Find a part of the code object that read_code() has put into s->code. */
static __always_inline int find_part(struct scratch *s, const struct pst_layout *at, u32 part,
				     struct part *out)
{
	struct string_head head = {};
	u32 offset = at->code_linetable;
	u64 object;

	if (part == PST_FILENAME)
		offset = at->code_filename;
	else if (part == PST_QUALNAME)
		offset = at->code_qualname;
	object = field64(s->code, offset);
	if (pst_read_user(&head, sizeof(head), (void *)(object + 16)))
		return -1;
	out->hash = head.hash;
	if (part == PST_LINETABLE) {
		out->char_size = 1;
		out->source = object + at->bytes_data;
	} else {
		/* The bit field of PyASCIIObject: interned 2, kind 3, compact 1, ascii 1. */
		out->char_size = (head.state >> 2) & 7;
		if (!(head.state & (1 << 5)) || !out->char_size || out->char_size > 4)
			return -1;
		out->source = object + (head.state & (1 << 6) ? at->ascii_data : at->compact_data);
	}
	out->total = head.length * out->char_size;
	return 0;
}

/*
 * Hash of a short line table, in one read; -1: it needs the long way.  What is read may
 * reach beyond the object's end, and is not looked at there.
 */
static __always_inline int digest_short(struct scratch *s, u64 object, u64 *hash)
{
	u64 h, size, rest;

	if (pst_read_user(s->contents, SHORT_SIZE, (void *)(object + 16)))
		return -1;
	size = *(u64 *)s->contents;
	if (size > SHORT_SIZE - 16)
		return -1;
	h = mix(*hash, size);
#pragma clang loop unroll(disable)
	for (u32 i = 0; i < SHORT_SIZE - 16; i += 8) {
		if (i >= size)
			break;
		rest = *(u64 *)(s->contents + 16 + i);
		if (size - i < 8)
			rest &= (1ULL << (8 * (size - i))) - 1;
		h = mix(h, rest);
	}
	*hash = h;
	return 0;
}

/* What the walk remembers of the frame before, whose file is mostly the same. */
struct file_digest {
	u64 object;
	u64 hash;
};

/* Hash of the contents of a code object's strings. */
static __always_inline int digest_code(struct scratch *s, const struct pst_layout *at,
				       struct file_digest *file, u64 *hash)
{
	u64 filename = field64(s->code, at->code_filename);
	struct part part = {};
	u64 h = 0;

	if (filename == file->object) {
		*hash = mix(*hash, file->hash);
	}
#pragma clang loop unroll(disable)
	for (u32 i = filename == file->object; i < PST_PARTS; i++) {
		if (i == PST_LINETABLE && at->bytes_data == 32 &&
		    !digest_short(s, field64(s->code, at->code_linetable), hash))
			break;
		if (find_part(s, at, i, &part))
			return -1;
		h = i == PST_FILENAME ? 0 : *hash;
		/* A line table's hash is hardly ever known, and then only sometimes taken. */
		if (i != PST_LINETABLE && part.hash != NO_HASH)
			h = mix(mix(h, part.hash), part.total);
		else if (digest_bytes(s, part.source, part.total, &h))
			return -1;
		if (i == PST_FILENAME) {
			file->object = filename;
			file->hash = h;
			h = mix(*hash, h);
		}
		*hash = h;
	}
	return 0;
}

static __always_inline int identify(struct scratch *s, const struct pst_layout *at, u64 code,
				    u32 epoch, struct file_digest *file, struct code_key *key)
{
	u32 version = 0;
	u64 hash;

	if (read_code(s, at, code))
		return -1;
	if (at->code_version)
		version = field32(s->code, at->code_version);
	hash = mix(mix(field32(s->code, at->code_first_line), version), epoch);
	if (version) {
		hash = mix(hash, field64(s->code, at->code_filename));
		hash = mix(hash, field64(s->code, at->code_qualname));
		hash = mix(hash, field64(s->code, at->code_linetable));
	} else if (digest_code(s, at, file, &hash)) {
		return -1;
	}
	key->address = code;
	key->digest = hash;
	return 0;
}

PST_PROGRAM(pystack_identify)
{
	struct pst_config *cfg = config_get();
	struct scratch *s = scratches_get();
	struct pst_sample *sample;
	struct pending_code *p;
	struct code_key key = {};
	struct file_digest file = {};
	u64 code, before = 0;
	u32 at, n, id = 0, *known;

	if (!cfg || !s)
		return 0;
	sample = &s->sample;
	n = sample->frame_count;
	at = s->identified;
	for (int i = 0; i < IDENTIFY_FRAMES; i++, at++) {
		if (at >= n)
			break;
		code = s->codes[at & (PST_MAX_FRAMES - 1)];
		if (code != before) {
			before = code;
			id = 0;
			if (identify(s, &cfg->layout, code, cfg->epoch, &file, &key)) {
				sample->header.flags |= PST_UNREADABLE;
			} else {
				known = codes_find(&key);
				if (known) {
					id = *known;
				} else {
					id = new_id(cfg, &s->code_count);
					if (id && !codes_add(&key, &id)) {
						p = &s->pending[s->pending_count &
								(PST_MAX_FRAMES - 1)];
						p->key = key;
						p->code_id = id;
						s->pending_count++;
					} else {
						/* Another CPU was first, or no room. */
						known = codes_find(&key);
						id = known ? *known : 0;
						if (!known) {
							count(PST_COUNT_MAP_FULL);
							sample->header.flags |= PST_MAP_FULL;
						}
					}
				}
			}
		}
		sample->frames[at & (PST_MAX_FRAMES - 1)].code_id = id;
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

/* Find where the current part lies and how long it is; at the first, tell of the code. */
static __always_inline int begin_part(struct scratch *s, const struct pst_layout *at,
				      struct pending_code *p)
{
	struct naming *work = &s->naming;
	struct pst_code *record = &s->code_record;

	if (!work->part) {
		if (read_code(s, at, p->key.address))
			return -1;
		record->header.size = sizeof(*record);
		record->header.type = PST_CODE;
		record->header.flags = 0;
		record->code_id = p->code_id;
		record->first_line = (s32)field32(s->code, at->code_first_line);
		if (ring_output(record, sizeof(*record)))
			return -1;
	}
	work->offset = 0;
	work->begun = 1;
	return find_part(s, at, work->part, &work->where);
}

/* Send the next piece of the current part. */
static __always_inline int send_piece(struct scratch *s, struct pending_code *p)
{
	struct naming *work = &s->naming;
	struct pst_text *text = &s->text;
	u64 n = work->where.total - work->offset;

	PST_OPAQUE(n);
	if (n > PST_CHUNK_SIZE)
		n = PST_CHUNK_SIZE;
	if (pst_read_user(text->data, n, (void *)(work->where.source + work->offset)))
		return -1;
	text->header.size = sizeof(*text) - sizeof(text->data) + n;
	text->header.type = PST_TEXT;
	text->header.flags = 0;
	text->code_id = p->code_id;
	text->part = work->part;
	text->char_size = work->where.char_size;
	text->offset = work->offset;
	text->total = work->where.total;
	if (ring_output(text, sizeof(*text) - sizeof(text->data) + n))
		return -1;
	work->offset += n;
	if (work->offset >= work->where.total) {
		work->begun = 0;
		work->part++;
	}
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
