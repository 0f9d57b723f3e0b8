"""What stays in memory under a limit, and what goes to a file."""

import numpy as np
import pytest
import torch

from qtool.errors import UnsupportedError
from qtool.runtime import row_stack
from qtool.runtime.memory import Quota, memory_limit, private_bytes, usable_memory
from qtool.runtime.row_stack import stack_rows
from qtool.steps.value_store import ValueStore

RNG = np.random.default_rng(5)


def test_a_limit_leaves_what_the_process_does_not_use_yet():
    used = private_bytes()
    with memory_limit(2 * used + (16 << 20)):
        quota = Quota(1 << 40, share=0.5)
        assert quota.reserve(2 << 20)  # 8 MB, less what this test took
        assert not quota.reserve(8 << 20)
        quota.release(2 << 20)
        assert usable_memory() <= 2 * used + (16 << 20)
        with memory_limit(None):
            assert Quota(1 << 40, share=0.5).reserve(1 << 40)
    with memory_limit(1):
        assert not Quota(1 << 40, share=1.0).reserve(1)


def test_stores_share_a_quota(tmp_path):
    quota = Quota(100, share=1.0)
    stores = [ValueStore(tmp_path / name, quota) for name in "ab"]
    for store, name in zip(stores, "ab", strict=True):
        (tmp_path / name).mkdir()
        store.put(0, {"x": torch.arange(20, dtype=torch.float32)})  # 80 bytes
    files = [len(list((tmp_path / name).iterdir())) for name in "ab"]
    assert files == [0, 1]
    assert torch.equal(stores[0].get(0)[0]["x"], stores[1].get(0)[0]["x"])
    stores[0].clear()
    stores[1].put(0, {"x": torch.arange(20, dtype=torch.float32)})
    assert list((tmp_path / "b").iterdir()) == []


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_rows_in_a_file_are_those_in_memory(limit, monkeypatch):
    monkeypatch.setattr(row_stack, "MEMORY_LIMIT", limit)
    rows = RNG.standard_normal((10, 3, 4), np.float32)
    stacked = stack_rows((rows[k : k + 4] for k in (0, 4, 8)), 10)
    assert isinstance(stacked, np.memmap) is (limit == 0)
    assert np.array_equal(stacked, rows) and stacked.dtype == rows.dtype


@pytest.mark.parametrize("shapes", [[(4, 2), (7, 2)], [(4, 2), (6, 1)], [(4, 2)], []])
def test_rows_that_are_not_one_for_each_sample_are_refused(shapes):
    with pytest.raises(UnsupportedError, match=r"10 (rows for as many )?samples"):
        stack_rows((np.zeros(shape) for shape in shapes), 10)
