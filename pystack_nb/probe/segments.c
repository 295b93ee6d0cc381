/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "segments.h"

#include <sys/mman.h>

enum {
	SIZE = 16 << 20,
	MARGIN = 4 << 20, /* for what C functions need, which is no less than they have otherwise */
	MOST = 16,        /* of a thread at a time */
	/*
	 * What the interpreter has specialised comes back after some thousand calls only, until
	 * when it recurses in C.
	 */
	GAP_SIZE = 64 << 20,
	GAP_MARGIN = 1 << 20,
	GUARD = 4096,
};

/* rdi: function, rsi: its argument, rdx: the end of the stack that it runs on. */
__asm__(".pushsection .text\n"
	".type pystack_call_on, @function\n"
	".p2align 4\n"
	"pystack_call_on:\n"
	"	.cfi_startproc\n"
	"	push %rbp\n"
	"	.cfi_def_cfa_offset 16\n"
	"	.cfi_offset %rbp, -16\n"
	"	mov %rsp, %rbp\n"
	"	.cfi_def_cfa_register %rbp\n"
	"	mov %rdx, %rsp\n"
	"	mov %rdi, %rax\n"
	"	mov %rsi, %rdi\n"
	"	call *%rax\n"
	"	mov %rbp, %rsp\n"
	"	pop %rbp\n"
	"	.cfi_def_cfa %rsp, 8\n"
	"	ret\n"
	"	.cfi_endproc\n"
	".size pystack_call_on, . - pystack_call_on\n"
	".popsection\n");
void pystack_call_on(void (*function)(void *), void *argument, void *end);

static bool uses_greenlets(void)
{
	static PyObject *name;
	PyObject *type, *value, *traceback;
	bool found;

	/* An exception may be on its way into the frame. */
	PyErr_Fetch(&type, &value, &traceback);
	if (!name)
		name = PyUnicode_InternFromString("greenlet");
	/* Not there when the interpreter ends. */
	PyObject *modules = PySys_GetObject("modules");

	found = !name || !modules || !PyDict_Check(modules) ||
		PyDict_GetItemWithError(modules, name) || PyErr_Occurred();
	PyErr_Clear();
	PyErr_Restore(type, value, traceback);
	return found;
}

static struct segment *make_segment(size_t size)
{
	char *memory = mmap(NULL, GUARD + size, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);

	if (memory == MAP_FAILED)
		return NULL;
	mprotect(memory, GUARD, PROT_NONE);
	madvise(memory, GUARD + size, MADV_NOHUGEPAGE);

	struct segment *s = (void *)(memory + GUARD);

	s->size = size;
	return s;
}

static void free_segment(struct segment *s)
{
	if (s)
		munmap((char *)s - GUARD, GUARD + s->size);
}

bool segments_find(struct thread *t)
{
	const struct segment *s = t->segment;

	if (!s)
		return false;
	t->stack_left = s->size == SIZE ? MARGIN : s->size - GAP_MARGIN;
	t->stack_low = (uintptr_t)s + t->stack_left;
	return true;
}

bool segments_enter(struct thread *t, enum segment_use use)
{
	struct segment *s = NULL;
	uint32_t number = t->segment ? t->segment->number + 1 : 1;

	if (use == SEGMENT_RECORDED ? number > MOST : number > MOST + 1)
		return false;
	if (uses_greenlets())
		return false;
	if (use == SEGMENT_RECORDED) {
		s = t->spare;
		t->spare = NULL;
	}
	if (!s)
		s = make_segment(use == SEGMENT_RECORDED ? SIZE : GAP_SIZE);
	if (!s)
		return false;
	s->outer = t->segment;
	s->outer_low = t->stack_low;
	s->outer_left = t->stack_left;
	s->number = number;
	t->segment = s;
	return segments_find(t);
}

void segments_call(const struct thread *t, void (*function)(void *), void *argument)
{
	pystack_call_on(function, argument, (char *)t->segment + t->segment->size);
}

void segments_leave(struct thread *t)
{
	struct segment *s = t->segment;

	t->segment = s->outer;
	t->stack_low = s->outer_low;
	t->stack_left = s->outer_left;
	if (s->size == SIZE && !t->spare && rec.recording)
		t->spare = s;
	else
		free_segment(s);
}

void segments_free(struct thread *t, bool all)
{
	free_segment(t->spare);
	t->spare = NULL;
	while (all && t->segment) {
		struct segment *s = t->segment;

		t->segment = s->outer;
		free_segment(s);
	}
}
