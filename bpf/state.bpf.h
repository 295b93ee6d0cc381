/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What the programs keep between two tail calls, and the keys of their maps.
 */
#ifndef PYSTACK_STATE_BPF_H
#define PYSTACK_STATE_BPF_H

#include "compat.h"
#include "pystack_time.h"

enum {
	RING_PAGES = 4096, /* 16 MiB: twice what the probe lets be on its way */
	CODE_ENTRIES = 65536,
	STACK_ENTRIES = 32768,
	OBJECT_SIZE = 256, /* bytes of a frame or code object that may be looked at */
	DIGEST_SIZE = 512, /* of a string without a hash: this much at each end */
	SHORT_SIZE = 256,  /* of a string that takes one read, with its head */
	USER_PAGE = 4096,
	STATE_BYTES = 160, /* of a thread state that is looked at */
	FRAME_BYTES = 80,  /* of a frame, in every layout */
	WINDOW_SIZE = 1024,
	WALK_FRAMES = 64,
	MAX_WALKS = 2 * PST_MAX_FRAMES / WALK_FRAMES + 1, /* half of the frames may have no code */
	IDENTIFY_FRAMES = 12,
	NAME_STEPS = 32,
	RECENT_CODES = 128,
	RECENT_STACKS = 256,
	LARGEST_ID = 0x7fffffff,
	LARGEST_FRAME = 1 << 20, /* of a native function; what is further away is no frame */
	SUID_DUMP_USER = 1,
	DUMPABLE_MASK = 3,
};

enum tail_call {
	CALL_WALK = 0,
	CALL_IDENTIFY = 1,
	CALL_NAME = 2,
	CALLS = 3,
};

struct code_key {
	u64 address;
	u64 digest;
};

/* Of what was found in the map `codes` last, on this CPU: one look, where the map takes several. */
struct recent_code {
	struct code_key key;
	u32 id;
	u32 reserved[3];
};

struct recent_stack {
	u64 hash;
	u32 id;
	u32 reserved;
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
 * therefore lead back to the frame that the CFrame around it knows, and all of its frames must
 * run code; the latter is seen when these are identified.
 */
struct evaluation {
	u64 around;      /* the CFrame around the present one */
	u64 calling;     /* the frame that it knows */
	u32 innermost;   /* whether the walk is still in the innermost evaluation */
	u32 frame_count; /* of the innermost evaluation; 0: they are not in doubt */
};

/* Of the frame before, whose file is mostly the same. */
struct file_digest {
	u64 object;
	u64 hash;
};

struct scratch {
	/* The walk's state is kept in memory: the verifier follows each value of a register. */
	struct evaluation evaluation;
	struct pst_sample sample;
	u64 codes[PST_MAX_FRAMES];
	u32 walk_again; /* without the innermost evaluation */
	u32 walks;      /* steps of the walk so far */
	u32 identified;
	u32 code_id; /* of the frame before */
	struct code_key key;
	struct file_digest file;
	u32 pending_count;
	struct pending_code pending[PST_MAX_FRAMES];
	struct naming naming;
	struct pst_code code_record;
	struct pst_text text;
	struct pst_addresses addresses;
	u64 next_frame;
	u64 window_at;   /* address of what is in the window */
	u64 window_last; /* offset of the last whole frame there */
	u8 window[WINDOW_SIZE + OBJECT_SIZE];
	u8 state[OBJECT_SIZE];
	u8 code[OBJECT_SIZE];
	u8 contents[DIGEST_SIZE + SHORT_SIZE];
	u32 code_count; /* ids given out by this CPU, in this recording */
	u32 stack_count;
	u32 recording;
	/* The keys have the epoch in them: nothing of an earlier one is found. */
	struct recent_code recent_codes[RECENT_CODES];
	struct recent_stack recent_stacks[RECENT_STACKS];
};

struct counters {
	u64 at[PST_COUNTERS];
};

#endif
