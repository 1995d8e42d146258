"""One torch thread for every test: two threads of a small problem only wait for each other."""

import torch

torch.set_num_threads(1)
