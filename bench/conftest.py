"""Settings shared by the benchmarks: thread count from OMP_NUM_THREADS, `--full` for the long ones."""

import os

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also run the benchmarks marked full")


def pytest_configure(config):
    config.addinivalue_line("markers", "full: takes minutes or gigabytes; runs with --full only")
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--full"):
        for item in items:
            if "full" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="long: add --full"))


def pytest_benchmark_update_machine_info(config, machine_info):
    """Adds the GPU's name, which bench.report uses in file names."""
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()
