"""What is prepared ahead is what is prepared when asked for, in order, and its errors arrive."""

from __future__ import annotations

import threading

import pytest
import torch

from mar_bench.utils.ahead import Ahead, Later, placed

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2])
def threads(request):
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


def test_each_is_made_once_and_in_order(threads):
    made: list[tuple[int, str]] = []

    def make(i: int) -> int:
        made.append((i, threading.current_thread().name))
        return i * i

    ahead = Ahead(make, 5, CPU)
    assert [ahead(i) for i in range(2, 5)] == [4, 9, 16]
    assert [i for i, _ in made] == [2, 3, 4], "nothing beyond the last"
    here = {name == threading.current_thread().name for _, name in made}
    assert here == {threads == 1}


def test_the_next_is_made_while_one_is_used():
    torch.set_num_threads(2)
    begun = threading.Event()
    ahead = Ahead(lambda i: begun.set() if i == 1 else None, 2, CPU)
    ahead(0)
    assert begun.wait(10)
    torch.set_num_threads(1)


def test_errors_arrive_where_the_result_is_used(threads):
    def make(i: int) -> int:
        if i == 1:
            raise ValueError("no noise")
        return i

    ahead = Ahead(make, 3, CPU)
    assert ahead(0) == 0
    with pytest.raises(ValueError, match="no noise"):
        ahead(1)


def test_tensors_are_placed_wherever_they_are():
    tree = (torch.ones(2), {"a": [torch.zeros(1), 3]}, None)
    found = placed(tree, torch.device("meta"))
    assert found[0].is_meta and found[1]["a"][0].is_meta and found[1]["a"][1] == 3 and found[2] is None
    assert placed(tree, CPU)[0] is tree[0]


def test_numbers_come_back_in_order_and_after_the_lag():
    numbers = [torch.tensor([float(i), 2.0]) for i in range(4)]
    now, behind = Later(CPU), Later(CPU, lag=2)
    assert [[*now(i, x)] for i, x in enumerate(numbers)] == [[(i, [i, 2.0])] for i in range(4)]
    assert [[tag for tag, _ in behind(i, x)] for i, x in enumerate(numbers)] == [[], [], [0], [1]]
    assert [*behind.due()] == [(2, [2.0, 2.0]), (3, [3.0, 2.0])]
    assert not [*behind.due()]
