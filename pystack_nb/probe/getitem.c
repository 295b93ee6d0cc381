/* SPDX-License-Identifier: MIT */
#include "getitem.h"

#include "monitor.h"
#include "types.h"

#if PY_VERSION_HEX < 0x030C0000
#include <internal/pycore_code.h>
#include <opcode.h>

enum {
	LARGEST = 0xffff, /* version that the instruction has room for */
	ATTEMPTS = 100,   /* the interpreter specialises code after eight */
};

static const char source[] = "class Item:\n"
			     "    def __getitem__(self, key):\n"
			     "        return key\n"
			     "def get(item):\n"
			     "    return item[0]\n"
			     "item, function = Item(), Item.__getitem__\n";

/* Where code has the instruction; NULL: nowhere. */
static _Py_CODEUNIT *find_instruction(PyCodeObject *code)
{
	_Py_CODEUNIT *units = _PyCode_CODE(code);
	Py_ssize_t count = Py_SIZE(code);

	for (Py_ssize_t i = 0; i < count; i++)
		if (_Py_OPCODE(units[i]) == BINARY_SUBSCR)
			return &units[i];
	return NULL;
}

static int call(PyObject *get, PyObject *item)
{
	PyObject *result = PyObject_CallOneArg(get, item);

	Py_XDECREF(result);
	return result ? 0 : -1;
}

/* Have `get` specialised, and its function given a version, again and again. */
static int use_up(PyObject *get, PyObject *item, PyFunctionObject *function)
{
	_Py_CODEUNIT *instruction = find_instruction((PyCodeObject *)PyFunction_GET_CODE(get));

	for (int i = 0; instruction && i < ATTEMPTS; i++) {
		if (function->func_version)
			break;
		if (call(get, item))
			return -1;
	}
	while (function->func_version && function->func_version <= LARGEST) {
		/* Not of another release, which numbers its instructions otherwise. */
		if (_Py_OPCODE(*instruction) != BINARY_SUBSCR_GETITEM)
			break;
		*instruction = _Py_MAKECODEUNIT(BINARY_SUBSCR_ADAPTIVE, _Py_OPARG(*instruction));
		((_PyBinarySubscrCache *)(instruction + 1))->counter = 0;
		function->func_version = 0;
		if (call(get, item))
			return -1;
	}
	if (function->func_version > LARGEST)
		return 0;
	PyErr_SetString(PyExc_RuntimeError, "the interpreter specialises no code");
	return -1;
}

/* Take a version away that is small: who calls such a function next gives it another one. */
static void renew(PyObject *function)
{
	if (PyFunction_Check(function) && ((PyFunctionObject *)function)->func_version <= LARGEST)
		((PyFunctionObject *)function)->func_version = 0;
}

static int renew_all(PyObject *functions)
{
	if (!functions)
		return -1;
	if (!PyList_Check(functions)) {
		Py_DECREF(functions);
		PyErr_SetString(PyExc_RuntimeError, "gc.get_objects() gives no list");
		return -1;
	}
	for (Py_ssize_t i = 0; i < PyList_GET_SIZE(functions); i++)
		renew(PyList_GET_ITEM(functions, i));
	Py_DECREF(functions);
	return 0;
}

static void renew_values(PyObject *dict)
{
	Py_ssize_t at = 0;
	PyObject *value;

	while (dict && PyDict_Next(dict, &at, NULL, &value))
		renew(value);
}

/* The same for what gc.freeze() may have hidden: the functions of types ... */
static void renew_type(PyTypeObject *type)
{
	renew_values(type->tp_dict);
}

/* ... and of modules. */
static void renew_modules(void)
{
	PyObject *modules = PyImport_GetModuleDict(), *module;
	Py_ssize_t at = 0;

	while (PyDict_Next(modules, &at, NULL, &module))
		if (PyModule_Check(module))
			renew_values(PyModule_GetDict(module));
}

static int renew_what_there_is(void)
{
	PyObject *gc = PyImport_ImportModule("gc");
	PyObject *objects = gc ? PyObject_CallMethod(gc, "get_objects", NULL) : NULL;

	Py_XDECREF(gc);
	if (!objects)
		monitor_say_refused();
	if (renew_all(objects))
		return -1;
	renew_modules();
	return types_each(renew_type);
}

static int make_visible(PyObject *names)
{
	PyObject *ran = PyRun_String(source, Py_file_input, names, names);
	PyObject *get = ran ? PyDict_GetItemString(names, "get") : NULL;
	PyObject *item = ran ? PyDict_GetItemString(names, "item") : NULL;
	PyObject *function = ran ? PyDict_GetItemString(names, "function") : NULL;

	Py_XDECREF(ran);
	if (!ran)
		monitor_say_refused();
	if (!get || !item || !function)
		return -1;

	PyThreadState *ts = PyThreadState_Get();

	/* A debugger's or a profiler's hook keeps code from being specialised. */
	PyThreadState_EnterTracing(ts);
	int error = use_up(get, item, (PyFunctionObject *)function);

	PyThreadState_LeaveTracing(ts);
	return error ? error : renew_what_there_is();
}

int getitem_make_visible(void)
{
	static bool done;

	if (done || Py_Version >= 0x030B04F0)
		return 0;
	PyObject *names = PyDict_New();
	int error = names ? PyDict_SetItemString(names, "__builtins__", PyEval_GetBuiltins()) : -1;

	if (!error)
		error = make_visible(names);
	Py_XDECREF(names);
	done = !error;
	return error;
}
#else
int getitem_make_visible(void)
{
	return 0;
}
#endif
