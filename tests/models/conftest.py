"""Small networks are fastest on one thread, and several threads on a busy machine wait for each other."""

import torch

torch.set_num_threads(1)
