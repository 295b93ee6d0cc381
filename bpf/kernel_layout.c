// SPDX-License-Identifier: MIT
/*
 * Ask BTF where the running kernel keeps what the BPF program reads: BCC can't relocate.
 * The collector calls this through ctypes (pystack_nb/collector/drain.py).
 */
#include <bpf/btf.h>
#include <errno.h>
#include <string.h>

#include "pystack_time.h"

// Byte offset of member `name` of structure `type`, anonymous members entered; its type.
static int member_offset(const struct btf *btf, int type, const char *name, __u32 *offset,
			 int *member_type)
{
	const struct btf_type *t = btf__type_by_id(btf, type);

	while (t && (btf_is_mod(t) || btf_is_typedef(t)))
		t = btf__type_by_id(btf, t->type);
	if (!t || !btf_is_composite(t))
		return -ENOENT;
	const struct btf_member *m = btf_members(t);

	for (int i = 0; i < btf_vlen(t); i++) {
		const char *found = btf__name_by_offset(btf, m[i].name_off);
		__u32 here = btf_member_bit_offset(t, i) / 8, inner = 0;

		if (found && !strcmp(found, name)) {
			*offset = here;
			*member_type = m[i].type;
			return 0;
		}
		if (found && !*found && !member_offset(btf, m[i].type, name, &inner, member_type)) {
			*offset = here + inner;
			return 0;
		}
	}
	return -ENOENT;
}

/* Ask the running kernel's BTF for what BCC, which has no CO-RE, must be told. */
int pst_kernel_layout(struct pst_kernel_layout *out)
{
	struct btf *btf = btf__load_vmlinux_btf();
	int task, mm, cred, thread, ignored, error = -ENOENT;
	__u32 thread_offset, fsbase;

	if (!btf)
		return errno ? -errno : -ENOENT;
	task = btf__find_by_name_kind(btf, "task_struct", BTF_KIND_STRUCT);
	mm = btf__find_by_name_kind(btf, "mm_struct", BTF_KIND_STRUCT);
	cred = btf__find_by_name_kind(btf, "cred", BTF_KIND_STRUCT);
	if (!member_offset(btf, task, "thread", &thread_offset, &thread) &&
	    !member_offset(btf, thread, "fsbase", &fsbase, &ignored) &&
	    !member_offset(btf, task, "real_cred", &out->task_real_cred, &ignored) &&
	    !member_offset(btf, task, "mm", &out->task_mm, &ignored) &&
	    !member_offset(btf, mm, "flags", &out->mm_flags, &ignored) &&
	    !member_offset(btf, cred, "uid", &out->cred_ids, &ignored) &&
	    !member_offset(btf, cred, "cap_permitted", &out->cred_permitted, &ignored)) {
		out->task_fsbase = thread_offset + fsbase;
		error = 0;
	}
	btf__free(btf);
	return error;
}
