/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The maps and their uses for clang -target bpf; BCC's are in pystack_time.bpf.c, under the same
 * names.
 */
#ifndef PYSTACK_MAPS_BPF_H
#define PYSTACK_MAPS_BPF_H

#include "state.bpf.h"

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

int pystack_walk(struct bpf_perf_event_data *ctx);
int pystack_identify(struct bpf_perf_event_data *ctx);
int pystack_name(struct bpf_perf_event_data *ctx);

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, CALLS);
	__uint(key_size, sizeof(u32));
	__array(values, int(struct bpf_perf_event_data *));
} programs SEC(".maps") = {
	.values = {[CALL_WALK] = pystack_walk,
		   [CALL_IDENTIFY] = pystack_identify,
		   [CALL_NAME] = pystack_name},
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
