/* SPDX-License-Identifier: MIT */
/* Another frame evaluator (PEP 523), that counts; and what is installed. */
#define Py_BUILD_CORE_MODULE 1
#include <Python.h>
#include <internal/pycore_frame.h>

static _PyFrameEvalFunction before;
static long evaluations;
static int alone; /* whoever was there before is not called */

static PyObject *evaluate(PyThreadState *ts, struct _PyInterpreterFrame *f, int throwing)
{
	evaluations++;
	return alone ? _PyEval_EvalFrameDefault(ts, f, throwing) : before(ts, f, throwing);
}

static _PyFrameEvalFunction present(void)
{
	return _PyInterpreterState_GetEvalFrameFunc(PyInterpreterState_Get());
}

static PyObject *install(PyObject *module, PyObject *unused)
{
	before = present();
	_PyInterpreterState_SetEvalFrameFunc(PyInterpreterState_Get(), evaluate);
	Py_RETURN_NONE;
}

static PyObject *set_alone(PyObject *module, PyObject *value)
{
	alone = PyObject_IsTrue(value);
	Py_RETURN_NONE;
}

static PyObject *restore(PyObject *module, PyObject *unused)
{
	_PyInterpreterState_SetEvalFrameFunc(PyInterpreterState_Get(), before);
	Py_RETURN_NONE;
}

static PyObject *count(PyObject *module, PyObject *unused)
{
	return PyLong_FromLong(evaluations);
}

static PyObject *installed(PyObject *module, PyObject *unused)
{
	_PyFrameEvalFunction function = present();

	return PyUnicode_FromString(function == _PyEval_EvalFrameDefault ? "default"
				    : function == evaluate               ? "own"
									 : "other");
}

static PyMethodDef methods[] = {
	{"install", install, METH_NOARGS, NULL},     {"alone", set_alone, METH_O, NULL},
	{"restore", restore, METH_NOARGS, NULL},     {"count", count, METH_NOARGS, NULL},
	{"installed", installed, METH_NOARGS, NULL}, {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
	PyModuleDef_HEAD_INIT, "evaluator", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit_evaluator(void)
{
	return PyModule_Create(&definition);
}
