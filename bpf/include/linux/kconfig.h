/* SPDX-License-Identifier: MIT */
#define CONFIG_BPF_SYSCALL 1
#define __always_inline inline __attribute__((always_inline))
#define PAGE_SIZE 4096
