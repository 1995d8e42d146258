"""Settings shared by the benchmarks: one thread count for everybody, from OMP_NUM_THREADS where it is set."""

import os

import torch


def pytest_configure(config):
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
