/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Native and kernel stacks, kept by a hash of their contents.
 */
#ifndef PYSTACK_NATIVE_BPF_H
#define PYSTACK_NATIVE_BPF_H

#include "memory.bpf.h"

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
	struct recent_stack *recent;
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
	recent = &s->recent_stacks[hash & (RECENT_STACKS - 1)];
	if (recent->hash == hash)
		return (s32)recent->id;
	known = stacks_find(&hash);
	if (known) {
		recent->hash = hash;
		recent->id = *known;
		return (s32)*known;
	}
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
	recent->hash = hash;
	recent->id = id;
	return (s32)id;
}

#endif
