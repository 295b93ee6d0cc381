/* SPDX-License-Identifier: MIT */
/*
 * 3.11.0 to 3.11.3 run a __getitem__ of Python's inside of its caller, also where there is a frame
 * evaluator (BINARY_SUBSCR_GETITEM; https://github.com/python/cpython/issues/104405), so that it
 * would not be seen.  The instruction remembers the version of the function, in 16 bits, and is
 * not made for one whose version is larger.  Versions are given one after the other, to whatever
 * function is called often: these are used up, once for all, and functions that have one already
 * get another one.
 *
 * That lasts: from the first recording on, such calls take some nanoseconds more, and C stack, as
 * they do wherever the interpreter has not specialised them.
 */
#ifndef PYSTACK_GETITEM_H
#define PYSTACK_GETITEM_H

#include "frames.h"

/* Have every __getitem__ called by way of the evaluator; -1 with an exception. */
int getitem_make_visible(void);

#endif
