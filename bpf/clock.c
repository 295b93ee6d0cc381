// SPDX-License-Identifier: MIT
/*
 * The processor's time stamp counter beside CLOCK_MONOTONIC.  The collector calls this
 * through ctypes (pystack_nb/collector/drain.py).
 */
#include <time.h>

#include "pystack_time.h"

enum {
	PAIR_ATTEMPTS = 8,
};

// The time stamp counter, neither before nor after its turn.
static __u64 counter(void)
{
	__builtin_ia32_lfence();
	__u64 now = __builtin_ia32_rdtsc();

	__builtin_ia32_lfence();
	return now;
}

/* Read the counter and CLOCK_MONOTONIC, several times, and keep the closest pair. */
void pst_clock_pair(__u32 clock, struct pst_pair *out)
{
	*out = (struct pst_pair){0, 0, ~0ull};
	for (int i = 0; i < PAIR_ATTEMPTS; i++) {
		struct timespec now;
		struct pst_pair pair;

		pair.before = counter();
		clock_gettime(CLOCK_MONOTONIC, &now);
		pair.after = counter();
		pair.ns = now.tv_sec * 1000000000ull + now.tv_nsec;
		if (clock != PST_TSC)
			pair.before = pair.after = pair.ns;
		if (pair.after - pair.before < out->after - out->before)
			*out = pair;
	}
}
