/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Which code object a frame runs, and what that is called.
 */
#ifndef PYSTACK_NAMES_BPF_H
#define PYSTACK_NAMES_BPF_H

#include "memory.bpf.h"

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

/* Address of a part of the code object that read_code() has put into s->code. */
static __always_inline u64 part_object(struct scratch *s, const struct pst_layout *at, u32 part)
{
	if (part == PST_FILENAME)
		return field64(s->code, at->code_filename);
	if (part == PST_QUALNAME)
		return field64(s->code, at->code_qualname);
	return field64(s->code, at->code_linetable);
}

/* Tell where the characters of a part lie, by its head. */
static __always_inline int describe_part(const struct pst_layout *at, u32 part, u64 object,
					 const struct string_head *head, struct part *out)
{
	out->hash = head->hash;
	if (part == PST_LINETABLE) {
		out->char_size = 1;
		out->source = object + at->bytes_data;
	} else {
		/* The bit field of PyASCIIObject: interned 2, kind 3, compact 1, ascii 1. */
		out->char_size = (head->state >> 2) & 7;
		if (!(head->state & (1 << 5)) || !out->char_size || out->char_size > 4)
			return -1;
		out->source = object + (head->state & (1 << 6) ? at->ascii_data : at->compact_data);
	}
	out->total = head->length * out->char_size;
	return 0;
}

static __always_inline int find_part(struct scratch *s, const struct pst_layout *at, u32 part,
				     struct part *out)
{
	u64 object = part_object(s, at, part);
	struct string_head head = {};

	if (pst_read_user(&head, sizeof(head), (void *)(object + 16)))
		return -1;
	return describe_part(at, part, object, &head, out);
}

/* Hash of up to 2 * DIGEST_SIZE bytes of memory: all, or the head and the tail. */
static __always_inline int digest_bytes(struct scratch *s, const struct part *part, u64 *hash)
{
	u64 n = part->total, after = part->source + part->total - DIGEST_SIZE;

	PST_OPAQUE(n);
	if (n > DIGEST_SIZE)
		n = DIGEST_SIZE;
	__builtin_memset(s->contents, 0, DIGEST_SIZE);
	if (pst_read_user(s->contents, n, (void *)part->source))
		return -1;
	*hash = mix_words(*hash, s->contents, DIGEST_SIZE);
	if (part->total <= DIGEST_SIZE)
		return 0;
	if (pst_read_user(s->contents, DIGEST_SIZE, (void *)after))
		return -1;
	*hash = mix_words(*hash, s->contents, DIGEST_SIZE);
	return 0;
}

/* Hash of the `size` bytes at `offset` of s->contents; what lies behind them is overwritten. */
static __always_inline u64 digest_short(struct scratch *s, u32 offset, u32 size, u64 hash)
{
	u8 *data = s->contents + (offset & (SHORT_SIZE / 2 - 8));
	u64 *last = (u64 *)(data + (size & (SHORT_SIZE - 8)));

	*last &= (1ULL << 8 * (size & 7)) - 1;
	last[1] = last[2] = last[3] = 0;
	return mix_words(hash, data, size);
}

/*
 * Hash of a part's contents.  One read takes its head and, if it is short, all of it: what is
 * read may then reach beyond the object's end, which is not looked at.
 */
static __always_inline int digest_part(struct scratch *s, const struct pst_layout *at, u32 part,
				       u64 *hash)
{
	u64 object = part_object(s, at, part);
	const struct string_head *head = (const void *)s->contents;
	struct part found = {};
	u64 before, h;
	long cut;

	cut = pst_read_user(s->contents, SHORT_SIZE, (void *)(object + 16));
	if (cut && pst_read_user(s->contents, sizeof(*head), (void *)(object + 16)))
		return -1;
	if (describe_part(at, part, object, head, &found))
		return -1;
	h = mix(*hash, found.total);
	before = found.source - (object + 16);
	/* A line table's hash is hardly ever known, and then only sometimes taken. */
	if (part != PST_LINETABLE && found.hash != NO_HASH)
		h = mix(h, found.hash);
	else if (!cut && before + found.total <= SHORT_SIZE)
		h = digest_short(s, before, found.total, h);
	else if (digest_bytes(s, &found, &h))
		return -1;
	*hash = h;
	return 0;
}

/* Hash of the contents of a code object's strings. */
static __always_inline int digest_code(struct scratch *s, const struct pst_layout *at, u64 *hash)
{
	struct file_digest *file = &s->file;
	u64 filename = field64(s->code, at->code_filename);
	u64 h = 0;

#pragma clang loop unroll(disable)
	for (u32 i = filename == file->object; i < PST_PARTS; i++) {
		if (digest_part(s, at, i, &h))
			return -1;
		if (i == PST_FILENAME) {
			file->object = filename;
			file->hash = h;
			h = 0;
		}
	}
	*hash = mix(mix(*hash, file->hash), h);
	return 0;
}

static __always_inline int identify(struct scratch *s, const struct pst_layout *at, u64 code,
				    u32 epoch)
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
	} else if (digest_code(s, at, &hash)) {
		return -1;
	}
	s->key.address = code;
	s->key.digest = hash;
	return 0;
}

/*
 * The id of the code object that s->key tells of goes into s->code_id; there it stays 0 if no
 * room is left.  A code object that is new is to be named.
 */
static __always_inline void find_code_id(struct pst_config *cfg, struct scratch *s)
{
	struct code_key *key = &s->key;
	struct recent_code *recent = &s->recent_codes[key->digest & (RECENT_CODES - 1)];
	u32 id = 0, *known;
	struct pending_code *p;

	if (recent->key.digest == key->digest && recent->key.address == key->address) {
		s->code_id = recent->id;
		return;
	}
	known = codes_find(key);
	if (!known) {
		if (s->pending_count < PST_MAX_FRAMES)
			id = new_id(cfg, &s->code_count);
		if (id && !codes_add(key, &id)) {
			p = &s->pending[s->pending_count & (PST_MAX_FRAMES - 1)];
			p->key = *key;
			p->code_id = id;
			s->pending_count++;
			s->code_id = id;
			return;
		}
		/* Another CPU was first, or no room. */
		known = codes_find(key);
		if (!known) {
			count(PST_COUNT_MAP_FULL);
			s->sample.header.flags |= PST_MAP_FULL;
			return;
		}
	}
	s->code_id = *known;
}

/*
 * What this CPU has named need not be looked up by it.  Not before: should the naming fail, it is
 * tried again when the code is met again.
 */
static __always_inline void remember_code(struct scratch *s, const struct pending_code *p)
{
	struct recent_code *recent = &s->recent_codes[p->key.digest & (RECENT_CODES - 1)];

	recent->key = p->key;
	recent->id = p->code_id;
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

#endif
