/* SPDX-License-Identifier: MIT */
/* Preloaded: lets the probe's requests for memory fail, and nobody else's. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

void *__libc_calloc(size_t count, size_t size);
void *__libc_malloc(size_t size);

int no_memory; /* n: the n-th request from now on fails; -1: each */

static bool fails(void *caller)
{
	Dl_info info;

	if (!no_memory || !dladdr(caller, &info) || !strstr(info.dli_fname, "/_probe."))
		return false;
	return no_memory < 0 || --no_memory == 0;
}

void *calloc(size_t count, size_t size)
{
	return fails(__builtin_return_address(0)) ? NULL : __libc_calloc(count, size);
}

void *malloc(size_t size)
{
	return fails(__builtin_return_address(0)) ? NULL : __libc_malloc(size);
}
