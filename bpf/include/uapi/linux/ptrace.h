/* SPDX-License-Identifier: MIT */
#ifndef PYSTACK_STUB_PTRACE_H
#define PYSTACK_STUB_PTRACE_H

/* The kernel's struct pt_regs on x86-64, as BPF programs are given it. */
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di;
	unsigned long orig_ax, ip, cs, flags, sp, ss;
};

#endif
