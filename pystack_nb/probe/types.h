/* SPDX-License-Identifier: MIT */
/* The classes that there are. */
#ifndef PYSTACK_TYPES_H
#define PYSTACK_TYPES_H

#include "frames.h"

/* Look at each class but object; -1 with an exception, when not all of them were. */
int types_each(void (*look)(PyTypeObject *));

#endif
