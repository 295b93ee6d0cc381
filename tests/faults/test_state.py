"""What is put back after forwards."""

import torch

from pystack_nb.faults.state import repeatable


def test_cudnn_is_as_it_was_when_the_last_of_several_ends():
    flags = torch.backends.cudnn
    before = flags.benchmark, flags.deterministic
    try:
        flags.benchmark, flags.deterministic = True, False
        one, other = (repeatable(torch.device("cuda")) for _ in range(2))
        # As two threads do that begin together.
        one.__enter__()
        other.__enter__()
        one.__exit__(None, None, None)
        assert (flags.benchmark, flags.deterministic) == (False, True)
        other.__exit__(None, None, None)
        assert (flags.benchmark, flags.deterministic) == (True, False)
    finally:
        flags.benchmark, flags.deterministic = before
