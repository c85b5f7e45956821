"""One thread for every test: small tensors gain nothing from more, and sums keep their order."""

import gc
import os
import shutil
import tempfile

import pytest
import torch

torch.set_num_threads(1)  # for code at the top of test modules
gc.set_threshold(50_000)  # with a heap of this size, the usual collections take a seventh of the tests' time
os.environ["MAR_BENCH_LOCKS"] = LOCKS = tempfile.mkdtemp(prefix="mar_bench-locks-")  # not to wait for runs elsewhere


def pytest_unconfigure():
    shutil.rmtree(LOCKS, ignore_errors=True)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Again before every test and its fixtures: commands that a test calls in this process set their own number."""
    torch.set_num_threads(1)


def pytest_collection_finish():
    gc.freeze()  # modules and tests stay: do not look through them again


def pytest_collection_modifyitems(items):
    """Files with long tests first, so that the workers finish together; the order inside a file stays."""
    long = {item.path for item in items if any(map(item.get_closest_marker, ("slurm", "smoke", "slow")))}
    items.sort(key=lambda item: item.path not in long)
