/* SPDX-License-Identifier: MIT */
#include "monitor.h"

#include "codes.h"
#include "levels.h"
#include "limits.h"

/* The calling thread's state, if it is on a stack of evaluations that are recorded. */
static struct thread *thread_in(const PyThreadState *ts)
{
	struct thread *t = this_thread;

	if (!rec.recording || !t || t->recording != rec.recording)
		return NULL;
	if (t->top->frame != current_frame(ts) && !rec.deep)
		levels_find(t, current_frame(ts));
	return t->top != t->stack->levels && t->top->frame == current_frame(ts) ? t : NULL;
}

static void enter_function(const PyThreadState *ts, PyObject *callable)
{
	struct thread *t = thread_in(ts);

	/* What a call of a Python function costs more is counted with that. */
	if (t && !PyFunction_Check(callable) && !PyMethod_Check(callable)) {
		limits.c_spent += limits.c_call_ticks;
		limits_spend(t, limits.c_call_ticks);
		if (limits.c_stopped || !rec.recording)
			return;
	}

	struct code *caller = t ? code_of(frame_code(t->top->frame)) : NULL;

	if (!caller || caller->recording != rec.recording || caller->mode > CODE_GENERATOR)
		return;
	struct code *c = codes_of_function(t, callable);

	if (!c)
		return;
	t->top->c_calls++;
	put_now(t, PST_ENTER, c->id);
}

static void leave_function(const PyThreadState *ts, PyObject *callable, enum pst_leave how)
{
	struct thread *t = thread_in(ts);

	if (t && t->top->c_calls &&
	    (PyCFunction_Check(callable) || Py_IS_TYPE(callable, &PyMethodDescr_Type))) {
		t->top->c_calls--;
		put_now(t, PST_LEAVE, how);
	}
}

#if PY_VERSION_HEX < 0x030C0000

static bool on;

/* PyEval_SetProfile's function: the evaluator has the calls of Python functions. */
static int profile(PyObject *unused, PyFrameObject *frame, int what, PyObject *arg)
{
	const PyThreadState *ts = PyThreadState_Get();

	(void)unused, (void)frame;
	if (!rec.recording || limits.c_stopped)
		_PyEval_SetProfile(PyThreadState_Get(), NULL, NULL);
	else if (what == PyTrace_C_CALL)
		enter_function(ts, arg);
	else if (what == PyTrace_C_RETURN || what == PyTrace_C_EXCEPTION)
		leave_function(ts, arg, what == PyTrace_C_RETURN ? PST_RETURNED : PST_RAISED);
	return 0;
}

int monitor_start(struct monitor_wanted wanted)
{
	on = wanted.c_calls;
	if (on && PyThreadState_Get()->c_profilefunc) {
		PyErr_SetString(PyExc_ValueError, "a profile function is set");
		on = false;
		return -1;
	}
	if (on)
		monitor_attach();
	return 0;
}

void monitor_attach(void)
{
	if (on && !limits.c_stopped && !PyThreadState_Get()->c_profilefunc)
		_PyEval_SetProfile(PyThreadState_Get(), profile, NULL);
}

/* An exception may be on its way, and is not to be lost. */
static void set_hook(Py_tracefunc hook)
{
	PyObject *type, *value, *traceback;

	PyErr_Fetch(&type, &value, &traceback);
	_PyEval_SetProfile(PyThreadState_Get(), hook, NULL);
	PyErr_Restore(type, value, traceback);
}

void monitor_pause(void)
{
	if (on && PyThreadState_Get()->c_profilefunc == profile)
		set_hook(NULL);
}

void monitor_go_on(void)
{
	if (on && rec.recording && !limits.c_stopped && !PyThreadState_Get()->c_profilefunc)
		set_hook(profile);
}

int monitor_stop(void)
{
	PyThreadState *ts;

	if (!on)
		return 0;
	on = false;
	for (ts = PyInterpreterState_ThreadHead(PyInterpreterState_Get()); ts;
	     ts = PyThreadState_Next(ts))
		if (ts->c_profilefunc == profile)
			_PyEval_SetProfile(ts, NULL, NULL);
	return 0;
}

#else

/* Ids that no kind of tool is given by PEP 669 come first, then a profiler's. */
static const int ids[] = {4, 3, 2};

static int tool = -1;
static PyObject *monitoring;
static PyObject *disable;
static PyObject *init_name;

/* Events of sys.monitoring.events, as bits (Include/cpython/monitoring.h). */
enum event {
	EVENT_PY_START = 1 << 0,
	EVENT_PY_RETURN = 1 << 2,
	EVENT_CALL = 1 << 4,
	EVENT_PY_UNWIND = 1 << 12,
	EVENT_C_RETURN = 1 << 15,
	EVENT_C_RAISE = 1 << 16,
};

static struct thread *present_thread(void)
{
	struct thread *t = this_thread;

	if (rec.recording && (!t || t->recording != rec.recording))
		t = recorder_attach();
	return rec.recording ? t : NULL;
}

/* Whether the frame runs the __init__ of its first argument's class. */
static bool is_init(const Frame *f)
{
	const PyCodeObject *code = frame_code(f);
	PyObject *self = code->co_argcount ? f->localsplus[0] : NULL;

	if (PyUnicode_CompareWithASCIIString(code->co_name, "__init__") == 0)
		return true;
	if (self && PyCell_Check(self))
		self = PyCell_GET(self);
	if (!self)
		return false;

	/* No attribute is asked for: a metaclass's own code might run. */
	PyObject *found = _PyType_Lookup(Py_TYPE(self), init_name);

	return found && PyFunction_Check(found) &&
	       PyFunction_GET_CODE(found) == (const PyObject *)code;
}

/* Such a call begins, which the evaluator does not see; the same as in evaluate.c. */
static void enter_init(struct thread *t, struct code *c, Frame *f)
{
	push(t, f->previous, f);

	struct level *l = t->top;

	l->monitored = true;
	l->entered = false;
	l->depth = l[-1].depth;
	if (c->mode == CODE_COUNTED && c->id < PST_COUNTED)
		rec.counts[c->id].calls++;
	if (c->mode != CODE_RECORDED) {
		limits.passed += limits.pass_ticks;
		limits_spend(t, limits.pass_ticks);
		return;
	}
	c->calls++;
	l->depth = limits_depth(c, l->depth);
	if (limits.depth && l->depth > limits.depth)
		return;
	l->entered = true;
	l->start = put_now(t, PST_ENTER, c->id);
	limits_spend(t, limits.call_ticks);
	if (limits.min_ticks)
		go_inside(t, c->id);
}

static void leave_init(struct thread *t, uint32_t id, enum pst_leave how)
{
	for (; t->top->c_calls; t->top->c_calls--)
		put_now(t, PST_LEAVE, PST_RETURNED);
	if (t->top->entered) {
		uint64_t ticks = ticks_now() - t->top->start;
		bool outermost = limits.min_ticks && go_outside(t, id);

		if (ticks < limits.min_ticks && id < PST_COUNTED) {
			rec.counts[id].calls++;
			if (outermost)
				rec.counts[id].ticks += ticks;
			how |= PST_SHORT;
		}
		put_now(t, PST_LEAVE, how);
	}
	t->top--;
}

static PyObject *on_start(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	PyThreadState *ts = PyThreadState_Get();
	Frame *f = current_frame(ts);
	struct thread *t = present_thread();
	struct code *c = code_of((PyCodeObject *)args[0]);

	(void)module, (void)count;
	if (!rec.recording)
		return Py_NewRef(disable);
	if (!t || rec.deep)
		Py_RETURN_NONE;
	if (t->top->frame == f) { /* the evaluator has seen it */
		if (!c || !is_init(f))
			return Py_NewRef(disable);
		c->init = true;
		Py_RETURN_NONE;
	}
	/* A generator's first evaluation leaves no level, and gets here only after that. */
	if (frame_code(f)->co_flags & (CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR))
		return Py_NewRef(disable);
	/* Inside an evaluation that runs unrecorded, which has its own note. */
	if (!is_init(f))
		Py_RETURN_NONE;
	if (!c || c->recording != rec.recording)
		c = codes_learn(t, f);
	if (!c)
		Py_RETURN_NONE;
	c->init = true;
	enter_init(t, c, f);
	Py_RETURN_NONE;
}

static PyObject *leave(PyObject *code, enum pst_leave how)
{
	Frame *f = current_frame(PyThreadState_Get());
	struct thread *t = this_thread;
	struct code *c = code_of((PyCodeObject *)code);

	if (t && rec.recording && t->recording == rec.recording &&
	    (t->top->frame == f || levels_find_own(t, f)) && t->top->monitored && c)
		leave_init(t, c->id, how);
	if (!rec.recording && how != PST_RAISED)
		return Py_NewRef(disable);
	/* An __init__ that began before the recording is not known as one yet. */
	return Py_NewRef(how == PST_RAISED || (c && c->init) || is_init(f) ? Py_None : disable);
}

static PyObject *on_return(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	(void)module, (void)count;
	return leave(args[0], PST_RETURNED);
}

static PyObject *on_unwind(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	(void)module, (void)count;
	return leave(args[0], PST_RAISED);
}

static PyObject *on_call(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	(void)module, (void)count;
	if (!rec.recording || limits.c_stopped)
		return Py_NewRef(disable); /* here; the next recording asks again */
	enter_function(PyThreadState_Get(), args[2]);
	Py_RETURN_NONE;
}

static PyObject *on_c_return(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	(void)module, (void)count;
	leave_function(PyThreadState_Get(), args[2], PST_RETURNED);
	Py_RETURN_NONE;
}

static PyObject *on_c_raise(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	(void)module, (void)count;
	leave_function(PyThreadState_Get(), args[2], PST_RAISED);
	Py_RETURN_NONE;
}

#define CALLBACK(name, function) {name, (PyCFunction)(void (*)(void))function, METH_FASTCALL, NULL}

static struct {
	int event;
	PyMethodDef definition;
} callbacks[] = {
	{EVENT_PY_START, CALLBACK("start", on_start)},
	{EVENT_PY_RETURN, CALLBACK("return", on_return)},
	{EVENT_PY_UNWIND, CALLBACK("unwind", on_unwind)},
	{EVENT_CALL, CALLBACK("call", on_call)},
	{EVENT_C_RETURN, CALLBACK("c_return", on_c_return)},
	{EVENT_C_RAISE, CALLBACK("c_raise", on_c_raise)},
};
enum { CALLBACKS = sizeof(callbacks) / sizeof(callbacks[0]) };

void monitor_attach(void)
{
}

void monitor_pause(void)
{
}

void monitor_go_on(void)
{
}

static int call(const char *name, const char *format, ...)
{
	va_list arguments;
	PyObject *method = PyObject_GetAttrString(monitoring, name);
	PyObject *tuple = NULL, *result = NULL;

	va_start(arguments, format);
	if (method)
		tuple = Py_VaBuildValue(format, arguments);
	va_end(arguments);
	if (tuple)
		result = PyObject_CallObject(method, tuple);
	Py_XDECREF(method);
	Py_XDECREF(tuple);
	Py_XDECREF(result);
	return result ? 0 : -1;
}

static int take_tool(void)
{
	for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
		if (!call("use_tool_id", "(is)", ids[i], "pystack_nb")) {
			tool = ids[i];
			return 0;
		}
		if (!PyErr_ExceptionMatches(PyExc_ValueError))
			return -1;
		PyErr_Clear();
	}
	PyErr_SetString(PyExc_ValueError, "no tool id of sys.monitoring is free");
	return -1;
}

int monitor_start(struct monitor_wanted wanted)
{
	int events = (wanted.init ? EVENT_PY_START | EVENT_PY_RETURN | EVENT_PY_UNWIND : 0) |
		     (wanted.c_calls ? EVENT_CALL : 0);

	if (!events)
		return 0;
	if (!monitoring) {
		monitoring = Py_XNewRef(PySys_GetObject("monitoring"));
		disable = monitoring ? PyObject_GetAttrString(monitoring, "DISABLE") : NULL;
		init_name = PyUnicode_InternFromString("__init__");
		if (!disable || !init_name) {
			PyErr_SetString(PyExc_RuntimeError, "sys.monitoring is not there");
			return -1;
		}
	}
	if (take_tool())
		return -1;
	for (size_t i = 0; i < CALLBACKS; i++) {
		PyObject *function = PyCFunction_New(&callbacks[i].definition, NULL);

		if (!function ||
		    call("register_callback", "(iiN)", tool, callbacks[i].event, function))
			goto fail;
	}
	/* What was disabled in an earlier recording is asked again. */
	if (call("restart_events", "()") || call("set_events", "(ii)", tool, events))
		goto fail;
	return 0;
fail:
	{
		PyObject *type, *value, *traceback;

		PyErr_Fetch(&type, &value, &traceback);
		monitor_stop();
		PyErr_Clear();
		PyErr_Restore(type, value, traceback);
		return -1;
	}
}

int monitor_stop(void)
{
	int error = 0;

	if (tool < 0)
		return 0;
	error |= call("set_events", "(ii)", tool, 0);
	for (size_t i = 0; i < CALLBACKS; i++)
		error |= call("register_callback", "(iiO)", tool, callbacks[i].event, Py_None);
	error |= call("free_tool_id", "(i)", tool);
	tool = -1;
	return error ? -1 : 0;
}

#endif
