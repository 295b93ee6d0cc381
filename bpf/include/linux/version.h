/* SPDX-License-Identifier: MIT */
/* The oldest kernel with a BPF ring buffer; the loader never asks for the real one. */
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 8, 0)
