"""One thread, so that numbers repeat, and libraries that keep quiet."""

import torch

from ports.commands import hush_libraries

torch.set_num_threads(1)
hush_libraries()
