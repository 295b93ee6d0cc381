// SPDX-License-Identifier: MIT
#define _GNU_SOURCE
#include <errno.h>
#include <linux/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "rights.h"

// Ask for an identity, and then, with one that nobody has, which one there is: these calls
// tell no error.  The system calls, not glibc's functions, since those are for all threads.
static int set_fs_id(long call, unsigned int id)
{
	syscall(call, id);
	return (unsigned int)syscall(call, -1) == id ? 0 : -EPERM;
}

int pst_drop_rights(unsigned int uid, unsigned int gid)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct none[2] = {};

	if (set_fs_id(SYS_setfsgid, gid) || set_fs_id(SYS_setfsuid, uid))
		return -EPERM;
	if (uid && syscall(SYS_capset, &head, none))
		return -errno;
	return 0;
}
