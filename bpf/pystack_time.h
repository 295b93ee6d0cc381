/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Every structure that crosses a boundary of pystack_nb, declared once: kernel to
 * collector (ring buffer, maps), collector to notebook (the spool file).
 *
 * Included by the BPF program (BCC and clang -target bpf) and by the C library;
 * tests/unit/test_wire_layout.py compares the compiler's offsets with the NumPy
 * dtypes of pystack_nb/wire.py.  Little-endian, natural alignment.
 *
 * A spool file is
 *
 *     struct pst_file_header
 *     block*        block = struct pst_block_header, __u32 sizes[record_count]
 *                           padded to 8 bytes, then the records, each padded to
 *                           8 bytes; sizes[i] is the padded size of record i
 *
 * The sizes stand in front of the records so that a reader finds all of them with
 * one cumulative sum, and so that a block cut short still gives its whole records.
 */
#ifndef PYSTACK_TIME_H
#define PYSTACK_TIME_H

#include <linux/types.h>

enum {
	PST_FORMAT = 1, /* version of the file format and of every structure below */
	PST_MAX_FRAMES = 128,
	PST_COMM_SIZE = 16,
	PST_CHUNK_SIZE = 1024,
	PST_MAX_NATIVE = 127, /* kernel.perf_event_max_stack */
};

/* Record types; the number stands in pst_header.type. */
enum pst_record_type {
	PST_SAMPLE = 1,    /* kernel:    struct pst_sample */
	PST_CODE = 2,      /* kernel:    struct pst_code, a code object seen first */
	PST_TEXT = 3,      /* kernel:    struct pst_text, a piece of its strings */
	PST_STATS = 4,     /* collector: struct pst_stats, the newest one counts */
	PST_STACK = 5,     /* collector: struct pst_stack, what a stack id stands for */
	PST_SYMBOL = 6,    /* collector: struct pst_symbol, a module or a kernel function */
	PST_META = 7,      /* both:      struct pst_header and UTF-8 JSON, an object */
	PST_ADDRESSES = 8, /* kernel to collector only, never in a file: struct pst_addresses */
	PST_CALLS = 9,     /* kernel or collector: struct pst_calls, a batch of a thread's calls */
	PST_CLOCK = 10,    /* collector or probe: struct pst_clock, one more pair */
	PST_COUNTS = 11,   /* collector or probe: struct pst_counts, what has counts only */
};

/* pst_header.flags of a PST_SAMPLE: what is missing from it. */
enum pst_sample_flag {
	PST_TOO_DEEP = 1 << 0,       /* more than PST_MAX_FRAMES Python frames */
	PST_UNREADABLE = 1 << 1,     /* the walk met memory it could not read */
	PST_UNNAMED = 1 << 2,        /* a frame's code object could not be named */
	PST_NO_PYTHON = 1 << 3,      /* not a loss: the thread has no Python state */
	PST_NATIVE_MISSING = 1 << 4, /* the native stack could not be kept */
	PST_KERNEL_MISSING = 1 << 5, /* the kernel stack could not be kept */
	PST_KERNEL_MODE = 1 << 6,    /* not a loss: the sample hit kernel code */
	PST_MAP_FULL = 1 << 7,       /* a frame's code object found no place in the map */
};

/* pst_header.flags of a PST_CALLS. */
enum pst_calls_flag {
	PST_CALLS_REST = 1
		<< 0, /* read from the shared buffer at the end, not by the probe's site */
};

/* Index into pst_stats.counters. */
enum pst_counter {
	PST_COUNT_TICKS = 0,      /* timer interrupts, also in forked children */
	PST_COUNT_HITS = 1,       /* of these, in a thread of the target */
	PST_COUNT_RING_FULL = 2,  /* samples that found the ring buffer full */
	PST_COUNT_DENIED = 3,     /* samples dropped: the target's rights changed */
	PST_COUNT_NAME_LOST = 4,  /* code objects whose strings did not arrive */
	PST_COUNT_MAP_FULL = 5,   /* code objects that found no place in the map */
	PST_COUNT_DISK_FULL = 6,  /* samples that the spool file had no room for */
	PST_COUNT_CALLS_LOST = 7, /* batches of calls that were not copied, or had no room */
	PST_COUNTERS = 8,
};

struct pst_file_header {
	char magic[8]; /* "PYSTACK\n" */
	__u32 format;  /* PST_FORMAT */
	__u32 size;    /* of this structure */
};

struct pst_block_header {
	__u32 magic; /* PST_BLOCK_MAGIC */
	__u32 record_count;
	__u64 data_size; /* bytes of the records, padding included */
};

#define PST_BLOCK_MAGIC 0x42545350u /* "PSTB" */

struct pst_header {
	__u32 size; /* of the record, this header included, without padding */
	__u16 type;
	__u16 flags;
};

struct pst_frame {
	__u32 code_id;     /* 0: not named */
	__s32 instruction; /* code units from the start of the bytecode; -1: not started */
};

struct pst_sample {
	struct pst_header header;
	__u64 ts_ns; /* CLOCK_MONOTONIC */
	__u32 pid;   /* as the target's own PID namespace sees them */
	__u32 tid;
	__s32 native_stack; /* stack id, or -1: none; native and kernel ids are one series */
	__s32 kernel_stack;
	__u32 cpu;
	__u32 frame_count;
	char comm[PST_COMM_SIZE];
	struct pst_frame frames[PST_MAX_FRAMES]; /* innermost first */
};

struct pst_code {
	struct pst_header header;
	__u32 code_id;
	__s32 first_line;
};

enum pst_text_part {
	PST_FILENAME = 0,
	PST_QUALNAME = 1,
	PST_LINETABLE = 2,
	PST_PARTS = 3,
};

struct pst_text {
	struct pst_header header;
	__u32 code_id;
	__u16 part;
	__u16 char_size; /* 1: Latin-1 or bytes, 2: UCS-2, 4: UCS-4 */
	__u32 offset;    /* of this piece, in bytes */
	__u32 total;     /* bytes of the whole */
	__u8 data[PST_CHUNK_SIZE];
};

struct pst_stats {
	struct pst_header header;
	__u64 ts_ns;
	__u64 counters[PST_COUNTERS];
};

/* A native or kernel stack seen first; the collector turns it into a PST_STACK. */
struct pst_addresses {
	struct pst_header header; /* flags: enum pst_symbol_kind of its frames */
	__s32 stack_id;
	__u32 frame_count;
	__u64 frames[PST_MAX_NATIVE]; /* innermost first */
};

enum pst_symbol_kind {
	PST_MODULE = 0, /* text: path of the file; a frame's offset: in the file */
	PST_KERNEL = 1, /* text: name of a kernel function; offset: 0 */
};

struct pst_symbol {
	struct pst_header header; /* flags: enum pst_symbol_kind */
	__u32 symbol_id;
	__u32 length; /* of the UTF-8 text that follows */
	/*
	 * The file that a PST_MODULE is mapped from, as /proc/PID/maps tells it; 0: none.
	 * Another file may have that path by the time its symbols are read.
	 */
	__u64 inode;
	__u32 device_major;
	__u32 device_minor;
};

struct pst_native_frame {
	__u64 offset;
	__u32 symbol_id;
	__u32 reserved;
};

struct pst_stack {
	struct pst_header header; /* flags: enum pst_symbol_kind of its frames */
	__s32 stack_id;
	__u32 frame_count;
	struct pst_native_frame frames[PST_MAX_NATIVE]; /* innermost first */
};

/*
 * How one build of CPython lays out what the walk needs: byte offsets.  Filled in
 * by pystack_nb/collector/layouts.py, which names the sources.
 */
struct pst_layout {
	__u64 code_type;        /* address of PyCode_Type */
	__u32 thread_state_tls; /* where the thread state hangs, from the thread pointer */
	__u32 cframe;           /* tstate -> CFrame, or 0: none (3.13) */
	__u32 current_frame;    /* in the CFrame, where `previous` follows; or in tstate */
	__u32 thread_id;        /* tstate -> pthread_t */
	__u32 frame_code;
	__u32 frame_previous;
	__u32 frame_instruction;
	__u32 frame_owner;
	__u32 frame_entry;  /* the flag of an evaluation's first frame (3.11), or 0: none */
	__u32 owner_cstack; /* owner value of the interpreter's own entry frames, 255: none */
	__u32 code_first_line;
	__u32 code_filename;
	__u32 code_qualname;
	__u32 code_linetable;
	__u32 code_version; /* 0: this build has none */
	__u32 code_start;   /* co_code_adaptive */
	__u32 ascii_data;   /* str -> characters, when compact and ASCII */
	__u32 compact_data; /* str -> characters, when compact and not ASCII */
	__u32 bytes_data;   /* bytes -> data */
};

/* Offsets in kernel structures, from BTF; the CO-RE build relocates instead. */
struct pst_kernel_layout {
	__u32 task_fsbase;
	__u32 task_real_cred;
	__u32 task_mm;
	__u32 mm_flags;
	__u32 cred_ids;       /* uid, gid, suid, sgid, euid, egid in a row */
	__u32 cred_permitted; /* kernel capabilities, 64 bits */
};

/* The one entry of the BPF map `config`: whom to sample, and how to read him. */
struct pst_config {
	__u64 pidns_dev; /* the target's own PID namespace */
	__u64 pidns_ino;
	__u32 tgid;         /* in that namespace */
	__u32 python_ready; /* the layout below is filled in */
	__u32 kernel_stacks;
	__u32 check_rights; /* compare what follows at each sample */
	__u32 ids[6];       /* uid, gid, suid, sgid, euid, egid */
	__u32 cpus;         /* that the kernel may ever have: ids are made without locks */
	__u32 epoch;        /* what had an id in an earlier one has none in this */
	__u32 recording;    /* ids begin anew in each */
	__u32 reserved;
	__u64 permitted; /* capabilities */
	struct pst_kernel_layout kernel;
	struct pst_layout layout;
};

/*
 * Calls mode.  The probe, inside the recorded process, and the collector share a memfd
 * that is sealed against shrinking and growing:
 *
 *     struct pst_shared                      at 0
 *     struct pst_batch [PST_BATCHES]         at PST_BATCHES_AT; one belongs to each thread
 *     struct pst_count [PST_COUNTED]         at PST_COUNTS_AT; by code id
 *
 * A thread stores words into its batch.  When it is full the thread reaches the probe's
 * site, whose uprobe copies the batch into the ring buffer, and begins it anew.  What
 * the batches hold when the recording ends, however it ends, the collector reads here.
 */
enum {
	PST_BATCH_SIZE = 16384,
	PST_BATCH_WORDS = 2042,
	PST_BATCHES = 1024,
	PST_BATCHES_AT = 4096,
	PST_COUNTED = 65536, /* code ids from this one on have no counts */
	PST_COUNTS_AT = PST_BATCHES_AT + PST_BATCHES * PST_BATCH_SIZE,
	PST_SHARED_SIZE = PST_COUNTS_AT + PST_COUNTED * 16,
	PST_PENDING_BATCHES = 512, /* the probe waits when as many are on their way */
};

#define PST_SHARED_MAGIC 0x534c4c4143545350ull /* "PSTCALLS" */

enum pst_clock_source {
	PST_MONOTONIC = 0, /* the counter is CLOCK_MONOTONIC itself */
	PST_TSC = 1,       /* the processor's time stamp counter */
};

/* The counter and CLOCK_MONOTONIC, read in this order without a pause. */
struct pst_pair {
	__u64 before; /* counter */
	__u64 ns;
	__u64 after; /* counter */
};

/* Index into pst_shared.counters: what the probe had to do without. */
enum pst_call_counter {
	PST_CALLS_NO_BATCH = 0,     /* threads without room: beyond PST_BATCHES, or out of memory */
	PST_CALLS_DEEP = 1,         /* times the C stack ran short, and calls ran unrecorded */
	PST_CALLS_MAX_EVENTS = 2,   /* 1: the bound on events was reached */
	PST_CALLS_WAITED_NS = 3,    /* time that threads waited for the drain */
	PST_CALLS_GAVE_UP = 4,      /* batches sent although the drain did not follow */
	PST_CALLS_INTERPRETERS = 5, /* sub-interpreters that are not recorded */
	PST_CALLS_FORKS = 6,        /* forked children, which are not recorded */
	PST_CALLS_STOPPED = 7,      /* 1: exact recording ended, the budget being used up */
	PST_CALLS_NO_ID = 8,        /* calls of code objects that got no id */
	PST_CALLS_C_STOPPED = 9,    /* 1: C functions alone would have used the budget up */
	PST_CALLS_REPLACED = 10,    /* enum pst_replaced */
	PST_CALLS_HOOK_TAKEN = 11,  /* times another tool took away what tells some of the calls */
	PST_CALLS_INIT_UNSEEN = 12, /* functions whose calls as an __init__ may be missing */
	PST_CALL_COUNTERS = 16,
};

/* Another frame evaluator that came while recording may not call the probe. */
enum pst_replaced {
	PST_NOT_REPLACED = 0,
	PST_REPLACED = 1,         /* it does not */
	PST_PERHAPS_REPLACED = 2, /* it was seen, and was gone before it could be tried */
};

struct pst_shared {
	__u64 magic;     /* PST_SHARED_MAGIC */
	__u32 format;    /* PST_FORMAT */
	__u32 clock;     /* enum pst_clock_source */
	__u32 used;      /* batches from 0 to this one have been used */
	__u32 recording; /* counts up with each start */
	__u64 sent;      /* batches that have reached the probe's site, by the probe */
	__u64 drained;   /* of these, by the collector: taken from the ring buffer, or lost */
	__u64 counters[PST_CALL_COUNTERS];
	struct pst_pair start; /* when the recording began */
};

struct pst_batch {
	__u32 thread; /* from 1, in the order of the threads' first calls; 0: not in use */
	__u32 tid;    /* as the process itself knows it */
	__u32 count;  /* words stored */
	__u32 flags;
	__u64 sequence;       /* of this thread's batches, from 0 */
	struct pst_pair pair; /* read when the batch began: all its times are later */
	__u64 words[PST_BATCH_WORDS];
};

/*
 * A word is an event:
 *
 *     bits  0 - 39   low bits of the counter: the time of the word before (pair.after, for
 *                    the first) and the difference, taken as a signed number of 40 bits; a
 *                    time that is less than the one before is taken as equal to it
 *     bits 40 - 61   operand
 *     bits 62 - 63   enum pst_word
 */
enum {
	PST_TIME_BITS = 40,
	PST_OPERAND_BITS = 22,
	PST_KIND_SHIFT = 62,
};

enum pst_word {
	PST_ENTER = 0,  /* a call begins; operand: code id */
	PST_LEAVE = 1,  /* the innermost open call ends; operand: enum pst_leave */
	PST_RESUME = 2, /* a generator or coroutine goes on; operand: code id */
	PST_OTHER = 3,  /* operand: enum pst_other in its low 4 bits, and an argument */
};

enum pst_leave {
	PST_RETURNED = 0,
	PST_RAISED = 1,
	PST_SHORT = 2, /* a flag: the call is counted in PST_COUNTS, and is to have no slice */
};

/* Words that begin with one of these have no time of their own where it says so. */
enum pst_other {
	PST_WORD_TIME = 0, /* no time; the next word is the whole counter of the word after it */
	/*
	 * No time; argument: how many words of UTF-8 text follow; in the low 40 bits the code id
	 * and, in bit 39, whether it is a C function.  The text is "filename\0qualname\0first
	 * line", with NULs to its end.
	 */
	PST_WORD_CODE = 1,
	/*
	 * The thread goes on on another stack, as greenlets do; argument: its number, from 0,
	 * which is the one that a thread begins on.  Open calls of the former one are
	 * suspended, those of this one go on.
	 */
	PST_WORD_SWITCH = 2,
	/* The next word is a code id: its calls have counts only from here on (or again slices). */
	PST_WORD_DEMOTE = 3,
	PST_WORD_PROMOTE = 4,
	PST_WORD_GAP = 5,     /* from here on the thread's calls run unrecorded */
	PST_WORD_GAP_END = 6, /* and from here on no more */
};

struct pst_calls {
	struct pst_header header; /* flags: enum pst_calls_flag */
	__u64 ts_ns;              /* CLOCK_MONOTONIC, by the kernel; 0: not known */
	__u32 pid;                /* as the target's own PID namespace sees them */
	__u32 tid;
	__u32 cpu;
	__u32 reserved;
	char comm[PST_COMM_SIZE];
	struct pst_batch batch; /* in a file, only `count` words of it */
};

struct pst_clock {
	struct pst_header header;
	__u32 clock; /* enum pst_clock_source */
	__u32 reserved;
	struct pst_pair pair;
};

/* Calls that have no slices; ticks of the clock. */
struct pst_count {
	__u64 calls;
	__u64 ticks;
};

struct pst_code_count {
	__u32 code_id;
	__u32 reserved;
	struct pst_count count;
};

struct pst_counts {
	struct pst_header header;
	__u32 count;
	__u32 reserved;
	__u64 counters[PST_CALL_COUNTERS]; /* pst_shared.counters */
	struct pst_code_count codes[];     /* `count` of them */
};

#endif
