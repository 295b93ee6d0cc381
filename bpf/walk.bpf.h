/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The walk over CPython's frames, in the memory of the thread that was interrupted.
 */
#ifndef PYSTACK_WALK_BPF_H
#define PYSTACK_WALK_BPF_H

#include "memory.bpf.h"

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

#endif
