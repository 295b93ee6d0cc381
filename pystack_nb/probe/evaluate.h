/* SPDX-License-Identifier: MIT */
/* The frame evaluator (PEP 523) that records calls. */
#ifndef PYSTACK_EVALUATE_H
#define PYSTACK_EVALUATE_H

#include "recorder.h"

PyObject *evaluate(PyThreadState *ts, Frame *f, int throwing);
/* Put it before the evaluator that is there. */
void evaluate_install(void);
/* Put back the one that was there; false: another one has come since, which stays. */
bool evaluate_remove(void);

#endif
