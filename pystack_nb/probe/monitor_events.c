/* SPDX-License-Identifier: MIT */
/* From CPython 3.12 on: sys.monitoring. */
#include "monitor.h"

#include "codes.h"
#include "levels.h"
#include "limits.h"
#include "types.h"

#if PY_VERSION_HEX >= 0x030C0000

/* Ids that no kind of tool is given by PEP 669 come first, then a profiler's. */
static const int ids[] = {4, 3, 2};

static const char tool_name[] = "pystack_nb";

static int tool = -1;
static PyObject *monitoring;
static PyObject *disable;
static PyObject *init_name;
static int wanted_events;
static bool c_calls;

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
	return rec.recording && t && !t->quiet ? t : NULL;
}

static bool has_init_name(const PyCodeObject *code)
{
	return PyUnicode_CompareWithASCIIString(code->co_name, "__init__") == 0;
}

/* Whether the frame runs the __init__ of its first argument's class, or may do so next time. */
static bool is_init(const Frame *f)
{
	const PyCodeObject *code = frame_code(f);
	PyObject *self = code->co_argcount ? f->localsplus[0] : NULL;
	const struct code *c = code_of(code);

	if (has_init_name(code) || (c && c->alias))
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
	if (!push(t, f->previous, f))
		return;

	struct level *l = t->top;

	l->monitored = true;
	l->entered = false;
	l->depth = limits_around(&l[-1]);
	l->whose = limits_whose(c, &l[-1]);
	if (c->mode == CODE_COUNTED && limits_counts(l))
		count_call(t, c->id);
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
	if (limits.min_ticks && limits_counts(l))
		go_inside(t, c->id);
}

static void leave_init(struct thread *t, uint32_t id, enum pst_leave how)
{
	limits_leave_c_call(t);
	if (t->top->entered) {
		uint64_t ticks = ticks_now() - t->top->start;
		bool counts = limits_counts(t->top);
		bool outermost = limits.min_ticks && counts && go_outside(t, id);

		if (ticks < limits.min_ticks && id < PST_COUNTED) {
			if (counts)
				count_call(t, id);
			if (outermost && !t->foreign)
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
		if (!c)
			return Py_NewRef(disable);
		if (!is_init(f)) {
			c->unwatched = true;
			return Py_NewRef(disable);
		}
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

/* The code of a class's __init__, if that has another name. */
static PyCodeObject *alias_in(PyObject *init)
{
	PyCodeObject *code =
		init && PyFunction_Check(init) ? (PyCodeObject *)PyFunction_GET_CODE(init) : NULL;

	return code && !has_init_name(code) ? code : NULL;
}

static int call(const char *name, const char *format, ...);

static PyObject *on_call(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	PyCodeObject *alias = NULL;

	(void)module, (void)count;
	/* As Python/specialize.c asks for it. */
	if (wanted_events & EVENT_PY_START && PyType_CheckExact(args[2]))
		alias = alias_in(_PyType_Lookup((PyTypeObject *)args[2], init_name));

	struct code *c = alias ? codes_mark(alias) : NULL;

	if (c && !c->alias) {
		c->alias = true;
		if (c->unwatched && c->recording == rec.recording && call("restart_events", "()"))
			PyErr_Clear();
	}
	if (!c_calls || !rec.recording || limits.c_stopped)
		return Py_NewRef(disable); /* each place in the code is looked at once */
	monitor_enter_function(PyThreadState_Get(), args[2]);
	Py_RETURN_NONE;
}

static PyObject *on_c_return(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	(void)module, (void)count;
	monitor_leave_function(PyThreadState_Get(), args[2], PST_RETURNED);
	Py_RETURN_NONE;
}

static PyObject *on_c_raise(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
	(void)module, (void)count;
	monitor_leave_function(PyThreadState_Get(), args[2], PST_RAISED);
	Py_RETURN_NONE;
}

#define CALLBACK(name, function) {name, (PyCFunction)(void (*)(void))function, METH_FASTCALL, NULL}

static struct {
	int event;
	PyMethodDef definition;
	PyObject *function;
} callbacks[] = {
	{EVENT_PY_START, CALLBACK("start", on_start), NULL},
	{EVENT_PY_RETURN, CALLBACK("return", on_return), NULL},
	{EVENT_PY_UNWIND, CALLBACK("unwind", on_unwind), NULL},
	{EVENT_CALL, CALLBACK("call", on_call), NULL},
	{EVENT_C_RETURN, CALLBACK("c_return", on_c_return), NULL},
	{EVENT_C_RAISE, CALLBACK("c_raise", on_c_raise), NULL},
};
enum { CALLBACKS = sizeof(callbacks) / sizeof(callbacks[0]) };

static PyObject *ask_with(const char *name, const char *format, va_list arguments)
{
	PyObject *method = PyObject_GetAttrString(monitoring, name);
	PyObject *tuple = method ? Py_VaBuildValue(format, arguments) : NULL;
	PyObject *result = tuple ? PyObject_CallObject(method, tuple) : NULL;

	Py_XDECREF(method);
	Py_XDECREF(tuple);
	return result;
}

static PyObject *ask(const char *name, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	PyObject *result = ask_with(name, format, arguments);

	va_end(arguments);
	return result;
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

	va_start(arguments, format);
	PyObject *result = ask_with(name, format, arguments);

	va_end(arguments);
	Py_XDECREF(result);
	return result ? 0 : -1;
}

static bool is_wanted(int event)
{
	/* These two come with the calls. */
	return event & (EVENT_C_RETURN | EVENT_C_RAISE) ? c_calls : event & wanted_events;
}

static int take_tool(void)
{
	for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++) {
		if (!call("use_tool_id", "(is)", ids[i], tool_name)) {
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

/* Know what is a class's __init__ already. */
static void mark_alias(PyTypeObject *type)
{
	PyObject *dict = PyType_GetDict(type);
	PyCodeObject *code = dict ? alias_in(PyDict_GetItem(dict, init_name)) : NULL;
	struct code *c = code ? codes_mark(code) : NULL;

	if (c)
		c->alias = true;
	Py_XDECREF(dict);
}

/* Count what became a class's __init__ after it was seen as another function. */
static void count_unseen(PyTypeObject *type)
{
	PyCodeObject *code = NULL;

#if PY_VERSION_HEX >= 0x030D0000
	/* Only what the interpreter has specialised gets by. */
	if (type->tp_flags & Py_TPFLAGS_HEAPTYPE && ((PyHeapTypeObject *)type)->_spec_cache.init)
		code = alias_in(_PyType_Lookup(type, init_name));
#else
	(void)type;
#endif
	struct code *c = code ? code_of(code) : NULL;

	if (c && c->unwatched && !c->alias && c->recording == rec.shared->recording) {
		c->alias = true;
		rec.shared->counters[PST_CALLS_INIT_UNSEEN]++;
	}
}

int monitor_start(struct monitor_wanted wanted)
{
	if (!wanted.init && !wanted.c_calls)
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
	c_calls = wanted.c_calls;
	wanted_events = EVENT_CALL;
	if (wanted.init)
		wanted_events |= EVENT_PY_START | EVENT_PY_RETURN | EVENT_PY_UNWIND;
	for (size_t i = 0; i < CALLBACKS; i++) {
		if (!is_wanted(callbacks[i].event))
			continue;
		if (!callbacks[i].function)
			callbacks[i].function = PyCFunction_New(&callbacks[i].definition, NULL);
		if (!callbacks[i].function)
			goto fail;
		if (call("register_callback", "(iiO)", tool, callbacks[i].event,
			 callbacks[i].function)) {
			monitor_say_refused();
			goto fail;
		}
	}
	if (wanted.init && types_each(mark_alias))
		goto fail;
	/* What was disabled in an earlier recording is asked again. */
	if (call("restart_events", "()") || call("set_events", "(ii)", tool, wanted_events))
		goto fail;
	return 0;
fail:
	{
		PyObject *type, *value, *traceback;

		PyErr_Fetch(&type, &value, &traceback);
		monitor_stop();
		PyErr_Restore(type, value, traceback);
		return -1;
	}
}

/* Whether the id is still the probe's; one that was given back is taken again, to be cleared. */
static bool is_own_tool(void)
{
	PyObject *name = ask("get_tool", "(i)", tool);
	bool own =
		name && PyUnicode_Check(name) && !PyUnicode_CompareWithASCIIString(name, tool_name);

	if (name == Py_None)
		own = !call("use_tool_id", "(is)", tool, tool_name);
	Py_XDECREF(name);
	PyErr_Clear();
	return own;
}

static bool has_events(void)
{
	PyObject *events = ask("get_events", "(i)", tool);
	long found = events && PyLong_Check(events) ? PyLong_AsLong(events) : 0;

	Py_XDECREF(events);
	PyErr_Clear();
	return (found & wanted_events) == wanted_events;
}

/* Take back a callback, another one's stays; false: it was not there any more. */
static bool unregister(int event, PyObject *function)
{
	PyObject *before = ask("register_callback", "(iiO)", tool, event, Py_None);
	bool own = before == function;

	if (before && before != Py_None && !own)
		call("register_callback", "(iiO)", tool, event, before);
	Py_XDECREF(before);
	PyErr_Clear();
	return own;
}

void monitor_stop(void)
{
	if (tool < 0)
		return;
	bool own = is_own_tool(), whole = own && has_events();

	if (own && call("set_events", "(ii)", tool, 0))
		PyErr_Clear();
	for (size_t i = 0; i < CALLBACKS; i++)
		if (is_wanted(callbacks[i].event))
			whole &= unregister(callbacks[i].event, callbacks[i].function);
	if (own && call("free_tool_id", "(i)", tool))
		PyErr_Clear();
	tool = -1;
	if (!rec.shared)
		return;
	if (!whole)
		rec.shared->counters[PST_CALLS_HOOK_TAKEN]++;
	if (wanted_events & EVENT_PY_START && types_each(count_unseen))
		PyErr_Clear();
}

#endif
