/* SPDX-License-Identifier: MIT */
/*
 * The words of calls mode into rows: what of decoding runs once per event.
 *
 * Built for the limited API, and arrays come and go through the buffer protocol, so that
 * one file serves every CPython and every NumPy.
 */
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

static struct PyModuleDef module = {
	PyModuleDef_HEAD_INIT,
	.m_name = "pystack_nb._pairing",
	.m_size = 0,
};

PyMODINIT_FUNC PyInit__pairing(void)
{
	return PyModuleDef_Init(&module);
}
