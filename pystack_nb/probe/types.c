/* SPDX-License-Identifier: MIT */
#include "types.h"

/* Whether a class is one's subclass by several ways. */
static bool has_several_bases(const PyTypeObject *type)
{
	return type->tp_bases && PyTuple_GET_SIZE(type->tp_bases) > 1;
}

/* Look at each class under `type`. */
static int for_each_type(PyTypeObject *type, PyObject *seen, void (*look)(PyTypeObject *))
{
	if (type->tp_flags & Py_TPFLAGS_HEAPTYPE && !type->tp_subclasses)
		return 0;
	if (has_several_bases(type)) {
		Py_ssize_t before = PySet_GET_SIZE(seen);
		PyObject *key = PyLong_FromVoidPtr(type);
		int error = key ? PySet_Add(seen, key) : -1;

		Py_XDECREF(key);
		if (error || PySet_GET_SIZE(seen) == before)
			return error;
	}
	PyObject *below =
		PyObject_CallMethod((PyObject *)&PyType_Type, "__subclasses__", "O", type);
	int error = below ? 0 : -1;

	for (Py_ssize_t i = 0; !error && i < PyList_GET_SIZE(below); i++) {
		PyTypeObject *one = (PyTypeObject *)PyList_GET_ITEM(below, i);

		look(one);
		error = for_each_type(one, seen, look);
	}
	Py_XDECREF(below);
	return error;
}

int types_each(void (*look)(PyTypeObject *))
{
	PyObject *seen = PySet_New(NULL);
	int error = seen ? for_each_type(&PyBaseObject_Type, seen, look) : -1;

	Py_XDECREF(seen);
	return error;
}
