/* SPDX-License-Identifier: MIT */
/* The module pystack_nb.probe._probe: switch the recording of calls on and off. */
#include "codes.h"
#include "evaluate.h"
#include "getitem.h"
#include "limits.h"
#include "monitor.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

void pystack_probe_site(struct pst_batch *batch);

static void free_patterns(struct patterns *patterns)
{
	for (size_t i = 0; i < patterns->count; i++)
		free(patterns->globs[i]);
	free(patterns->globs);
	*patterns = (struct patterns){0};
}

static int set_patterns(struct patterns *patterns, PyObject *globs)
{
	Py_ssize_t count = globs ? PyTuple_GET_SIZE(globs) : 0;

	free_patterns(patterns);
	patterns->globs = calloc(count + 1, sizeof(*patterns->globs));
	if (!patterns->globs) {
		PyErr_NoMemory();
		return -1;
	}
	for (Py_ssize_t i = 0; i < count; i++) {
		const char *glob = PyUnicode_AsUTF8(PyTuple_GET_ITEM(globs, i));

		if (!glob)
			return -1;
		patterns->globs[i] = strdup(glob);
		if (!patterns->globs[i]) {
			PyErr_NoMemory();
			return -1;
		}
		patterns->count++;
	}
	return 0;
}

static uint32_t *foreign_threads;

static int set_foreign(PyObject *tids)
{
	Py_ssize_t count = tids ? PyTuple_GET_SIZE(tids) : 0;

	free(foreign_threads);
	rec.foreign = foreign_threads = calloc(count + 1, sizeof(*foreign_threads));
	if (!foreign_threads) {
		PyErr_NoMemory();
		return -1;
	}
	for (Py_ssize_t i = 0; i < count; i++) {
		foreign_threads[i] = PyLong_AsUnsignedLong(PyTuple_GET_ITEM(tids, i));
		if (PyErr_Occurred())
			return -1;
	}
	return 0;
}

static void count_interpreters(bool begins)
{
	static int64_t next_id, others;

	if (begins) {
		next_id = _PyRuntime.interpreters.next_id;
		others = 0;
		for (PyInterpreterState *i = PyInterpreterState_Head(); i;
		     i = PyInterpreterState_Next(i))
			others += i != PyInterpreterState_Get();
	}
	/* Also those that have come and gone since. */
	rec.shared->counters[PST_CALLS_INTERPRETERS] =
		others + _PyRuntime.interpreters.next_id - next_id;
}

PyDoc_STRVAR(prepare_doc, "prepare(fd, tsc)\n--\n\n"
			  "Make shared memory of an empty memfd of SHARED_SIZE bytes.\n\n"
			  "tsc: whether the processor's counter is the clock.");

static PyObject *prepare(PyObject *module, PyObject *args)
{
	int fd, tsc, error;

	(void)module;
	if (!PyArg_ParseTuple(args, "ip", &fd, &tsc))
		return NULL;
	if (!rec.shared)
		rec.clock = tsc ? PST_TSC : PST_MONOTONIC;
	error = recorder_prepare(fd, tsc ? PST_TSC : PST_MONOTONIC);
	if (error) {
		errno = error;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	Py_RETURN_NONE;
}

/* Take back what was switched on, and keep the exception. */
static void abandon(void)
{
	PyObject *type, *value, *traceback;

	PyErr_Fetch(&type, &value, &traceback);
	monitor_stop();
	PyErr_Restore(type, value, traceback);
}

PyDoc_STRVAR(start_doc,
	     "start(fd, spool, *, init=False, c_calls=False, max_events=0, depth=0, min_us=0.0,\n"
	     "      budget=0.0, costs=(0.0, 0.0, 0.0), include=(), exclude=(), hidden=(),\n"
	     "      outside=(), uncounted=(), serving=(), library=(), foreign=(), only_in=None)\n"
	     "--\n\n"
	     "Record the calls of this interpreter, from this one's return on.\n\n"
	     "fd: the shared memory. spool: -1, or the file that the in-process source writes to.\n"
	     "init: whether __init__ must be watched by sys.monitoring. costs, for the budget: of\n"
	     "a recorded call, of one that is not, and of one of a C function, in ns. include to\n"
	     "library: globs. foreign: native ids of threads whose short calls are not counted.\n"
	     "only_in: the file during whose code alone this thread is recorded. 0 is no limit.");

static PyObject *start(PyObject *module, PyObject *args, PyObject *named)
{
	static char *names[] = {"fd",      "spool",   "init",    "c_calls",   "max_events",
				"depth",   "min_us",  "budget",  "costs",     "include",
				"exclude", "hidden",  "outside", "uncounted", "serving",
				"library", "foreign", "only_in", NULL};
	int fd, spool, init = 0, c_calls = 0, error;
	unsigned int depth = 0;
	unsigned long long max_events = 0;
	double min_us = 0, budget = 0, call_ns = 0, pass_ns = 0, c_call_ns = 0;
	PyObject *include = NULL, *exclude = NULL, *hidden = NULL, *outside = NULL;
	PyObject *uncounted = NULL, *serving = NULL, *library = NULL, *foreign = NULL,
		 *only_in = Py_None;

	(void)module;
	if (!PyArg_ParseTupleAndKeywords(
		    args, named, "ii|$ppKIdd(ddd)O!O!O!O!O!O!O!O!O", names, &fd, &spool, &init,
		    &c_calls, &max_events, &depth, &min_us, &budget, &call_ns, &pass_ns, &c_call_ns,
		    &PyTuple_Type, &include, &PyTuple_Type, &exclude, &PyTuple_Type, &hidden,
		    &PyTuple_Type, &outside, &PyTuple_Type, &uncounted, &PyTuple_Type, &serving,
		    &PyTuple_Type, &library, &PyTuple_Type, &foreign, &only_in))
		return NULL;
	if (only_in != Py_None && !PyUnicode_Check(only_in)) {
		PyErr_SetString(PyExc_TypeError, "only_in is no file's name");
		return NULL;
	}
	if (rec.shared) {
		PyErr_SetString(PyExc_RuntimeError, "calls are being recorded already");
		return NULL;
	}
	if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
		PyErr_SetString(PyExc_RuntimeError, "this is a sub-interpreter");
		return NULL;
	}
	if (set_patterns(&filters.include, include) || set_patterns(&filters.exclude, exclude) ||
	    set_patterns(&filters.hidden, hidden) || set_patterns(&filters.outside, outside) ||
	    set_patterns(&filters.uncounted, uncounted) ||
	    set_patterns(&filters.serving, serving) || set_patterns(&filters.library, library) ||
	    set_foreign(foreign))
		return NULL;
	limits = (struct limits){.depth = depth, .budget = budget};
	if (min_us > 0 || budget > 0) {
		limits.min_ticks = (uint64_t)(min_us * limits_ticks_per_us());
		if (budget > 0) {
			double ticks_per_ns = limits_ticks_per_us() / 1000;

			limits.call_ticks = 1 + (uint64_t)(call_ns * ticks_per_ns);
			limits.pass_ticks = 1 + (uint64_t)(pass_ns * ticks_per_ns);
			limits.c_call_ticks = 1 + (uint64_t)(c_call_ns * ticks_per_ns);
		}
	}
	if (monitor_start((struct monitor_wanted){.init = init, .c_calls = c_calls}))
		return NULL;
	if (evaluate_install(!limits_any() && !c_calls)) {
		abandon();
		return NULL;
	}
	codes_begin();
	limits_begin();
	error = recorder_start(fd, spool, max_events);
	if (error) {
		evaluate_remove();
		errno = error;
		PyErr_SetFromErrno(PyExc_OSError);
		abandon();
		return NULL;
	}
	count_interpreters(true);
	evaluate_only_in(only_in == Py_None ? NULL : only_in);
	Py_RETURN_NONE;
}

/*
 * Both are in C since an interrupt raises between any two calls of Python's: here it finds either
 * nothing done, or an exit that will come.
 */
static PyObject *quiet_enter(PyObject *self, PyObject *unused)
{
	(void)self, (void)unused;
	recorder_hush(1);
	Py_RETURN_NONE;
}

static PyObject *quiet_exit(PyObject *self, PyObject *raised)
{
	(void)self, (void)raised;
	if (!recorder_hush(-1)) {
		PyErr_SetString(PyExc_RuntimeError, "this thread is not quiet");
		return NULL;
	}
	Py_RETURN_NONE;
}

static PyMethodDef quiet_methods[] = {
	{"__enter__", quiet_enter, METH_NOARGS, NULL},
	{"__exit__", quiet_exit, METH_VARARGS, NULL},
	{NULL, NULL, 0, NULL},
};

static PyTypeObject quiet_type = {
	PyVarObject_HEAD_INIT(NULL, 0).tp_name = "pystack_nb.probe._probe.Quiet",
	.tp_basicsize = sizeof(PyObject),
	.tp_flags = Py_TPFLAGS_DEFAULT,
	.tp_doc = PyDoc_STR("Record nothing of what this thread calls inside the with block."),
	.tp_methods = quiet_methods,
	.tp_new = PyType_GenericNew,
};

PyDoc_STRVAR(call_quietly_doc, "call_quietly(function, *args, **named)\n--\n\n"
			       "Call a function, and record nothing of what it calls.");

static PyObject *call_quietly(PyObject *module, PyObject *const *args, Py_ssize_t count,
			      PyObject *names)
{
	(void)module;
	if (count < 1) {
		PyErr_SetString(PyExc_TypeError, "call_quietly() needs a function");
		return NULL;
	}
	recorder_hush(1);
	PyObject *result = PyObject_Vectorcall(args[0], args + 1, count - 1, names);

	recorder_hush(-1);
	return result;
}

PyDoc_STRVAR(stop_doc, "stop()\n--\n\n"
		       "Record no more. Whether the evaluator could be taken out.\n\n"
		       "What is left in the shared memory stays there until close().");

static PyObject *stop(PyObject *module, PyObject *unused)
{
	(void)module, (void)unused;
	if (!rec.shared)
		Py_RETURN_TRUE;
	count_interpreters(false);
	recorder_stop();
	recorder_keep_bound();
	bool removed = evaluate_remove();

	rec.shared->counters[PST_CALLS_REPLACED] = evaluate_replaced();

	monitor_stop();
	evaluate_only_in(NULL);
	rec.foreign = NULL;
	free(foreign_threads);
	foreign_threads = NULL;
	return PyBool_FromLong(removed);
}

PyDoc_STRVAR(close_doc, "close()\n--\n\n"
			"Let go of the shared memory; the in-process source writes what is left.");

static PyObject *close_(PyObject *module, PyObject *unused)
{
	int error = 0;

	(void)module, (void)unused;
	if (rec.recording) {
		PyErr_SetString(PyExc_RuntimeError, "calls are being recorded: stop() first");
		return NULL;
	}
	if (rec.shared && rec.spool >= 0) {
		recorder_write_rest();
		error = rec.error;
	}
	recorder_close();
	if (error) {
		errno = error;
		return PyErr_SetFromErrno(PyExc_OSError);
	}
	Py_RETURN_NONE;
}

PyDoc_STRVAR(
	forget_doc,
	"forget()\n--\n\nIn a forked child: take the evaluator out, and give the tool id back.");

static PyObject *forget(PyObject *module, PyObject *unused)
{
	(void)module, (void)unused;
	evaluate_remove();
	monitor_stop();
	Py_RETURN_NONE;
}

PyDoc_STRVAR(pair_doc,
	     "pair()\n--\n\n"
	     "The processor's counter, CLOCK_MONOTONIC in ns, and the counter once more.");

static PyObject *pair(PyObject *module, PyObject *unused)
{
	(void)module, (void)unused;
	unsigned long long before = __rdtsc(), ns = monotonic_ns(), after = __rdtsc();

	return Py_BuildValue("KKK", before, ns, after);
}

PyDoc_STRVAR(see_getitem_doc,
	     "see_getitem()\n--\n\nHave 3.11.0 to 3.11.3 call every __getitem__ as later ones do.");

static PyObject *see_getitem(PyObject *module, PyObject *unused)
{
	(void)module, (void)unused;
	if (getitem_make_visible())
		return NULL;
	Py_RETURN_NONE;
}

PyDoc_STRVAR(is_recording_doc, "is_recording()\n--\n\nWhether calls are being recorded.");

static PyObject *is_recording(PyObject *module, PyObject *unused)
{
	(void)module, (void)unused;
	return PyBool_FromLong(rec.shared != NULL);
}

PyDoc_STRVAR(site_doc, "site()\n--\n\nAddress of the probe's site.");

static PyObject *site(PyObject *module, PyObject *unused)
{
	(void)module, (void)unused;
	return PyLong_FromVoidPtr((void *)pystack_probe_site);
}

static PyMethodDef methods[] = {
	{"prepare", prepare, METH_VARARGS, prepare_doc},
	{"start", (PyCFunction)(void (*)(void))start, METH_VARARGS | METH_KEYWORDS, start_doc},
	{"call_quietly", (PyCFunction)(void (*)(void))call_quietly, METH_FASTCALL | METH_KEYWORDS,
	 call_quietly_doc},
	{"stop", stop, METH_NOARGS, stop_doc},
	{"close", close_, METH_NOARGS, close_doc},
	{"forget", forget, METH_NOARGS, forget_doc},
	{"pair", pair, METH_NOARGS, pair_doc},
	{"site", site, METH_NOARGS, site_doc},
	{"see_getitem", see_getitem, METH_NOARGS, see_getitem_doc},
	{"is_recording", is_recording, METH_NOARGS, is_recording_doc},
	{NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT,
	"_probe",
	"Records calls into shared memory.",
	-1,
	methods,
	NULL,
	NULL,
	NULL,
	NULL,
};

PyMODINIT_FUNC PyInit__probe(void)
{
	if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
		/* It keeps its ids in the main interpreter's code objects. */
		PyErr_SetString(PyExc_ImportError, "this is a sub-interpreter");
		return NULL;
	}
	if (codes_init())
		return NULL;
	if (pthread_atfork(NULL, recorder_count_fork, recorder_forget))
		return PyErr_NoMemory();
	PyObject *module = PyModule_Create(&definition);

	if (module && (PyModule_AddIntConstant(module, "SHARED_SIZE", PST_SHARED_SIZE) ||
		       PyModule_AddType(module, &quiet_type))) {
		Py_DECREF(module);
		return NULL;
	}
	return module;
}
