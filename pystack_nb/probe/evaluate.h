/* SPDX-License-Identifier: MIT */
/* The frame evaluator (PEP 523) that records calls. */
#ifndef PYSTACK_EVALUATE_H
#define PYSTACK_EVALUATE_H

#include "recorder.h"

/*
 * Put it before the evaluator that is there; -1 with an exception. `whole`: there are no limits,
 * and no C functions.
 */
int evaluate_install(bool whole);
/* Put back the one that was there; false: another one has come since, which stays. */
bool evaluate_remove(void);
/*
 * Record the calling thread only while code of a file runs; NULL: all of it.  A coroutine's code
 * runs to its end, also while it is suspended.
 */
void evaluate_only_in(PyObject *file);
/* A batch is sent: see who is there. */
void evaluate_look(void);
/* Whether another one kept calls from the probe, as far as that can be known; after the recording.
 */
enum pst_replaced evaluate_replaced(void);

#endif
