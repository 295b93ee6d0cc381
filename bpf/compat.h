/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What BCC and clang -target bpf (libbpf, CO-RE) do in different ways, behind one
 * set of names.  BCC_SEC is defined by BCC's own preamble, so its presence tells who
 * compiles.  Maps are not here: BCC rewrites their uses in the main file only and not
 * in macros, so pystack_time.bpf.c declares them for BCC, and maps.bpf.h once more.
 */
#ifndef PYSTACK_COMPAT_H
#define PYSTACK_COMPAT_H

#ifdef BCC_SEC

#include <linux/bpf_perf_event.h>

#define PST_PROGRAM(name)       int name(struct bpf_perf_event_data *ctx)
#define PST_PROBE_PROGRAM(name) int name(struct pt_regs *ctx)

/* The text of the licence section, which BCC's footer makes: the kernel knows it without blanks. */
// clang-format off
#define BPF_LICENSE Dual MIT/GPL
// clang-format on

/*
 * The helpers that read memory, under names of ours: BCC takes the usual ones for a
 * question and reads all of kallsyms, a quarter of a second, to see which there are.
 */
static long (*pst_read_user)(void *to, u32 size,
			     const void *from) = (void *)BPF_FUNC_probe_read_user;
static long (*pst_read_kernel)(void *to, u32 size,
			       const void *from) = (void *)BPF_FUNC_probe_read_kernel;

#define PST_REGISTER(ctx, name)   ((ctx)->regs.name)
#define PST_ARGUMENT(ctx)         ((ctx)->di)

/* BCC has no CO-RE: the loader reads these from BTF into the config map. */
#define PST_OFFSET(config, field) ((config)->kernel.field)

#else /* clang -target bpf */

#include <linux/bpf.h>
#include <linux/bpf_perf_event.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __s32 s32;
typedef __u64 u64;

#define PST_PROGRAM(name)         SEC("perf_event") int name(struct bpf_perf_event_data *ctx)
#define PST_PROBE_PROGRAM(name)   SEC("uprobe") int name(struct pt_regs *ctx)

/* The names that <asm/ptrace.h> has for user space. */
#define PST_REGISTER(ctx, name)   ((ctx)->regs.r##name)
#define PST_ARGUMENT(ctx)         ((ctx)->rdi)

#define pst_read_user             bpf_probe_read_user
#define pst_read_kernel           bpf_probe_read_kernel

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* Only the members that are read; CO-RE finds where the running kernel has them. */
struct thread_struct {
	unsigned long fsbase;
} __attribute__((preserve_access_index));

/* Linux 6.18 made mm_struct.flags, a long, a bitmap: two flavours, one of which exists. */
struct mm_struct___long {
	unsigned long flags;
} __attribute__((preserve_access_index));

typedef struct {
	unsigned long bits[1];
} mm_flags_t;

struct mm_struct___bitmap {
	mm_flags_t flags;
} __attribute__((preserve_access_index));

typedef struct {
	u32 val;
} kuid_t;

typedef struct {
	u64 val;
} kernel_cap_t;

struct cred {
	kuid_t uid;
	kernel_cap_t cap_permitted;
} __attribute__((preserve_access_index));

struct mm_struct;

struct task_struct {
	struct thread_struct thread;
	const struct cred *real_cred;
	struct mm_struct *mm;
} __attribute__((preserve_access_index));

#define PST_OFFSET_task_fsbase    bpf_core_field_offset(struct task_struct, thread.fsbase)
#define PST_OFFSET_task_real_cred bpf_core_field_offset(struct task_struct, real_cred)
#define PST_OFFSET_task_mm        bpf_core_field_offset(struct task_struct, mm)
#define PST_OFFSET_mm_flags                                                                        \
	(bpf_core_field_exists(struct mm_struct___bitmap, flags)                                   \
		 ? bpf_core_field_offset(struct mm_struct___bitmap, flags)                         \
		 : bpf_core_field_offset(struct mm_struct___long, flags))
#define PST_OFFSET_cred_ids       bpf_core_field_offset(struct cred, uid)
#define PST_OFFSET_cred_permitted bpf_core_field_offset(struct cred, cap_permitted)
#define PST_OFFSET(config, field) (PST_OFFSET_##field)

#endif

/* Keep clang from reordering the bounds check that follows, which the verifier reads. */
#define PST_OPAQUE(variable) asm volatile("" : "+r"(variable))

#endif
