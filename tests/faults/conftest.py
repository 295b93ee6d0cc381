from __future__ import annotations

import torch


# The networks are small, and other processes may keep the other processors busy.
torch.set_num_threads(1)
