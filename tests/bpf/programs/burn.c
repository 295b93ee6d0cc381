/* A thread that runs no Python: burns CPU time until it is told to stop. */
#define _GNU_SOURCE
#include <pthread.h>
#include <unistd.h>

static volatile int stop;
static volatile unsigned long sink;
static pthread_t thread;
static volatile int tid;

__attribute__((noinline)) void native_burn(void)
{
	for (int i = 0; i < 1000; i++)
		sink += i * sink + 1;
}

static void *run(void *arg)
{
	tid = gettid();
	while (!stop)
		native_burn();
	return arg;
}

int burn_start(void)
{
	pthread_create(&thread, NULL, run, NULL);
	while (!tid)
		usleep(1000);
	return tid;
}

void burn_stop(void)
{
	stop = 1;
	pthread_join(thread, NULL);
}
