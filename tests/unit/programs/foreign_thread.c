/* SPDX-License-Identifier: MIT */
/* Calls back from a thread that Python did not start: each time with a new thread state. */
#include <pthread.h>
#include <stddef.h>

struct work {
	void (*callback)(int);
	int times;
};

static void *run(void *arg)
{
	struct work *work = arg;

	for (int i = 0; i < work->times; i++)
		work->callback(i);
	return NULL;
}

void call_back(void (*callback)(int), int times)
{
	struct work work = {callback, times};
	pthread_t thread;

	if (!pthread_create(&thread, NULL, run, &work))
		pthread_join(thread, NULL);
}
