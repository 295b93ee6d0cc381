/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What all programs need: counters, fields of objects and memory at an address, hashes, ids, and
 * whose thread this is.
 */
#ifndef PYSTACK_MEMORY_BPF_H
#define PYSTACK_MEMORY_BPF_H

#include "state.bpf.h"

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

/* In four lanes, which the processor works on at once; `size` is rounded up to 32. */
static __always_inline u64 mix_words(u64 hash, const u8 *words, u32 size)
{
	u64 a = hash, b = hash, c = hash, d = hash;

#pragma clang loop unroll(disable)
	for (u32 i = 0; i < DIGEST_SIZE; i += 32) {
		if (i >= size)
			break;
		a = mix(a, *(const u64 *)(words + i));
		b = mix(b, *(const u64 *)(words + i + 8));
		c = mix(c, *(const u64 *)(words + i + 16));
		d = mix(d, *(const u64 *)(words + i + 24));
	}
	return mix(mix(mix(a, b), c), d);
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

#endif
