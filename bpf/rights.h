// SPDX-License-Identifier: MIT
#ifndef PYSTACK_RIGHTS_H
#define PYSTACK_RIGHTS_H

/*
 * Take the file-system identity of a user, and give up every capability unless that is root:
 * this thread alone.  Returns 0 or a negative errno; then the thread must not write.
 */
int pst_drop_rights(unsigned int uid, unsigned int gid);

#endif
