"""Results keep the order of their chunks, few chunks are ahead, and torch's threads come back."""

import threading
import time

import pytest
import torch

from qtool.runtime.chunk_threads import map_chunks


@pytest.fixture(autouse=True, params=[1, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


def test_results_are_in_the_order_of_the_chunks():
    def compute(k):
        time.sleep(0.002 * (k % 3 == 0))
        return k * k

    assert list(map_chunks(compute, range(20))) == [k * k for k in range(20)]
    assert list(map_chunks(compute, ())) == []


def test_each_chunk_is_computed_on_one_thread_without_gradients(threads):
    used = set()

    def compute(k):
        used.add(threading.get_ident())
        return torch.get_num_threads(), torch.is_inference_mode_enabled(), torch.ones(1) + k

    results = list(map_chunks(compute, range(8)))
    assert {result[:2] for result in results} == {(1, True)}
    assert [float(result[2]) for result in results] == list(range(1, 9))
    assert (threading.get_ident() in used) == (threads == 1)


def test_chunks_are_read_as_results_are_taken(threads):
    read = []
    results = map_chunks(lambda k: k, (read.append(k) or k for k in range(100)))
    assert read == []
    next(results)
    assert len(read) <= threads + 1
    results.close()
    assert len(read) <= threads + 1


def test_an_error_ends_the_work():
    done = []

    def compute(k):
        if k == 2:
            raise ValueError("chunk 2")
        done.append(k)
        return k

    with pytest.raises(ValueError, match="chunk 2"):
        list(map_chunks(compute, range(1000)))
    assert len(done) < 20


def test_results_can_be_the_chunks_of_another_call():
    inner = map_chunks(lambda k: k + 1, range(10))
    assert list(map_chunks(lambda k: 2 * k, inner)) == [2 * k for k in range(1, 11)]
