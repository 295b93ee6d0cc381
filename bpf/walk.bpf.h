/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The walk over CPython's frames, in the memory of the thread that was interrupted.
 */
#ifndef PYSTACK_WALK_BPF_H
#define PYSTACK_WALK_BPF_H

#include "memory.bpf.h"

/* A CFrame's frame and the CFrame around it, which stand side by side. */
static __always_inline void read_cframe(const struct pst_layout *at, u64 cframe, u64 *frame,
					u64 *around)
{
	u64 pair[2] = {};

	if (cframe)
		pst_read_user(pair, sizeof(pair), (void *)(cframe + at->current_frame));
	*frame = pair[0];
	*around = pair[1];
}

static __always_inline void go_around(const struct pst_layout *at, struct evaluation *e)
{
	read_cframe(at, e->around, &e->calling, &e->around);
}

/*
 * FRAME_BYTES bytes of a frame, in s->window; NULL: they can't be read.  A read costs about the
 * same whatever its size, and a frame's caller mostly lies right below it: so what is
 * below, in the same page and therefore as readable, is read with it.
 */
static __always_inline const u8 *read_frame(struct scratch *s, u64 frame)
{
	u64 offset = frame - s->window_at, back = WINDOW_SIZE - FRAME_BYTES;

	if (frame < s->window_at || offset > s->window_last) {
		offset = frame & (USER_PAGE - 1);
		PST_OPAQUE(offset);
		if (offset > back)
			offset = back;
		s->window_at = frame - offset;
		s->window_last = offset;
		if (pst_read_user(s->window, offset + FRAME_BYTES, (void *)s->window_at)) {
			s->window_at = 0;
			s->window_last = 0;
			return 0;
		}
	}
	return s->window + (offset & (WINDOW_SIZE - 1));
}

/* Find where the walk begins; nonzero: there is nothing to walk, and the sample says why. */
static __always_inline int begin_walk(struct pst_config *cfg, struct scratch *s)
{
	struct pst_sample *sample = &s->sample;
	const struct pst_layout *at = &cfg->layout;
	struct evaluation *e = &s->evaluation;
	u64 thread_pointer = kernel64(bpf_get_current_task() + PST_OFFSET(cfg, task_fsbase));
	u64 state;

	if (pst_read_user(&state, sizeof(state), (void *)(thread_pointer + at->thread_state_tls)) ||
	    (state && pst_read_user(s->state, STATE_BYTES, (void *)state))) {
		sample->header.flags |= PST_UNREADABLE;
		return -1;
	}
	/* A slot that holds something else must not send the walk astray. */
	if (!state || field64(s->state, at->thread_id) != thread_pointer) {
		sample->header.flags |= PST_NO_PYTHON;
		return -1;
	}
	s->window_at = 0;
	s->window_last = 0;
	s->walks = 0;
	e->innermost = at->cframe != 0;
	if (at->cframe) {
		read_cframe(at, field64(s->state, at->cframe), &s->next_frame, &e->around);
		go_around(at, e);
	} else {
		s->next_frame = field64(s->state, at->current_frame);
	}
	return 0;
}

/* The innermost evaluation has not begun: its caller is what executes. */
static __always_inline u64 leave_innermost(struct scratch *s, const struct pst_layout *at)
{
	struct evaluation *e = &s->evaluation;
	u64 frame = e->calling;

	s->sample.frame_count = 0;
	e->innermost = 0;
	e->frame_count = 0;
	go_around(at, e);
	return frame;
}

/*
 * Put some frames of the current thread into s->codes and s->sample.frames; whether that
 * was not the last of them.
 */
static __always_inline int walk(struct pst_config *cfg, struct scratch *s)
{
	struct pst_sample *sample = &s->sample;
	const struct pst_layout *at = &cfg->layout;
	u64 frame = s->next_frame, code, instruction, previous;
	struct evaluation *e = &s->evaluation;
	u32 n, owner, entry;
	const u8 *object;

	for (int i = 0; i < WALK_FRAMES; i++) {
		object = frame ? read_frame(s, frame) : 0;
		if (!object) {
			/* An evaluation's frames end with its first, which is told by a flag. */
			if (e->innermost) {
				frame = leave_innermost(s, at);
				continue;
			}
			if (frame)
				sample->header.flags |= PST_UNREADABLE;
			return 0;
		}
		code = field64(object, at->frame_code);
		instruction = field64(object, at->frame_instruction);
		previous = field64(object, at->frame_previous);
		owner = object[at->frame_owner & (OBJECT_SIZE - 1)];
		entry = at->frame_entry ? object[at->frame_entry & (OBJECT_SIZE - 1)]
					: owner == at->owner_cstack;
		/* Not the interpreter's own entry frames, nor frames being torn down. */
		if (owner != at->owner_cstack && code) {
			n = sample->frame_count;
			if (n >= PST_MAX_FRAMES) {
				sample->header.flags |= PST_TOO_DEEP;
				return 0;
			}
			s->codes[n & (PST_MAX_FRAMES - 1)] = code;
			sample->frames[n & (PST_MAX_FRAMES - 1)].code_id = 0;
			sample->frames[n & (PST_MAX_FRAMES - 1)].instruction =
				(s32)((long)(instruction - code - at->code_start) >> 1);
			sample->frame_count = n + 1;
			if (e->innermost)
				e->frame_count = n + 1;
		}
		frame = previous;
		if (at->cframe && entry) {
			if (previous == e->calling) {
				e->innermost = 0;
				go_around(at, e);
			} else if (e->innermost) {
				frame = leave_innermost(s, at);
			} else {
				sample->header.flags |= PST_UNREADABLE;
				return 0;
			}
		}
	}
	s->next_frame = frame;
	return 1;
}

#endif
