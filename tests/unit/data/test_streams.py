"""Streams: states are fed back over the calls of a file, recorded, and read in any order."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtool.data import DataSection, Dataset, InputSpec, open_dataset
from qtool.data.streams import Loop, StreamCalls, initial_state
from qtool.data.streams.recorded_states import record_states, with_recorded_states
from qtool.errors import DataError

X = InputSpec("x", (1, 2), "float32")
STATE = InputSpec("state", (3, 1, 2), "float32", batch_axis=1)
LOOP = {"total": "state"}


class Rows:
    """Calls of numbered rows; counts those that are read."""

    def __init__(self, values):
        self.values, self.read = np.asarray(values, np.float32), []

    def stream(self, positions, size):
        for start in range(0, len(positions), size):
            chosen = list(positions[start : start + size])
            self.read += chosen
            yield {"x": self.values[chosen]}

    def digest(self, position):
        return str(self.values[position])


def running_total(batch):
    """A network whose state is the sum of its inputs, three times."""
    return {"total": batch["state"] + batch["x"][None], "y": batch["x"]}


def loop(values, starts):
    return Loop(LOOP, {"state": initial_state(STATE)}, Rows(values), tuple(starts))


def totals(values, starts):
    """The sum over the calls in front of each call of its stream, [calls, 2]."""
    ends = [*starts[1:], len(values)]
    parts = [
        np.cumsum(values[a:b], axis=0) - values[a:b] for a, b in zip(starts, ends, strict=True)
    ]
    return np.concatenate(parts)


@st.composite
def streams(draw):
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    count = sum(lengths)
    positions = draw(st.sets(st.integers(0, count - 1), min_size=1))
    starts = [0, *np.cumsum(lengths[:-1]).tolist()]
    return np.arange(2.0 * count).reshape(count, 2), starts, sorted(positions)


@given(streams())
def test_states_are_those_of_the_calls_before(case):
    values, starts, positions = case
    expected = totals(values, starts)
    results = list(loop(values, starts).run(positions, running_total))
    assert [position for position, _, _ in results] == positions
    for position, feeds, outputs in results:
        np.testing.assert_array_equal(feeds["state"], np.tile(expected[position], (3, 1, 1)))
        assert outputs["y"] is feeds["x"]


@given(streams())
def test_calls_behind_the_last_chosen_one_are_not_run(case):
    values, starts, positions = case
    streamed = loop(values, starts)
    list(streamed.run(positions, running_total))
    ends = [*starts[1:], len(values)]
    last = [max((p for p in positions if a <= p < b), default=a - 1)
            for a, b in zip(starts, ends, strict=True)]  # fmt: skip
    expected = [k for a, end in zip(starts, last, strict=True) for k in range(a, end + 1)]
    assert streamed.calls.read == expected


def test_the_first_calls_of_every_stream_are_chosen():
    streamed = loop(np.zeros((9, 2)), [0, 5])
    assert streamed.first_calls(range(9), 5) == [0, 1, 2, 5, 6]
    assert streamed.first_calls([1, 3, 4, 8], 2) == [0, 3]
    assert streamed.first_calls(range(9), 99) == list(range(9))


@given(streams(), st.integers(1, 4))
def test_recorded_states_are_read_in_any_order(tmp_path_factory, case, size):
    values, starts, positions = case
    names = tuple(map(str, positions))
    data = Dataset(names, Rows(values), tuple(positions), loop=loop(values, starts))
    inputs = {"x": X, "state": STATE}
    folder = tmp_path_factory.mktemp("states")
    assert list(record_states(data, inputs, running_total, folder))[-1] == len(positions)
    recorded = with_recorded_states(data, inputs, folder).take(range(len(positions))[::-1])
    states = np.concatenate([b["state"] for b in recorded.batches(size)], axis=1)
    expected = totals(values, starts)[positions[::-1]]
    np.testing.assert_array_equal(states, np.tile(expected, (3, 1, 1)))


def test_a_state_that_grows_is_refused():
    grown = loop(np.zeros((2, 2)), [0])
    with pytest.raises(DataError, match=r"`total` has shape \[4, 1, 2\].*`state`.*\[3, 1, 2\]"):
        list(grown.run([1], lambda batch: {"total": np.zeros((4, 1, 2), np.float32)}))


def test_a_stream_begins_with_zeros_or_the_input_s_constant():
    assert initial_state(STATE).shape == (3, 1, 2) and not initial_state(STATE).any()
    free = replace(STATE, shape=(3, "N", 2), constant=((1.0, 2.0),) * 3)
    np.testing.assert_array_equal(initial_state(free), np.tile([1.0, 2.0], (3, 1, 1)))
    assert initial_state(InputSpec("n", (), "int64")).shape == ()


@pytest.mark.parametrize(
    ("shape", "words"),
    [((3, 4, 2), "of 4 streams in axis 1"), ((3, 1, "T"), r"open sizes.*\[3, 1, 1\]")],
)
def test_a_state_without_one_size_is_refused(shape, words):
    with pytest.raises(DataError, match=words):
        initial_state(replace(STATE, shape=shape))


def test_a_call_s_digest_covers_the_calls_before_it():
    values = np.zeros((6, 2))
    changed = values.copy()
    changed[1] = 1
    one, two = (StreamCalls(Rows(v), (0, 3)) for v in (values, changed))
    assert [one.digest(k) == two.digest(k) for k in (2, 1, 0, 3, 4, 5)] == [0, 0, 1, 1, 1, 1]
    assert len({one.digest(k) for k in range(3)}) == 3  # silence after silence
    assert one.digest(0) == one.digest(3)


def opened(path, inputs, **options):
    section = DataSection(arrays=str(path), loop=LOOP, **options)
    return open_dataset(section, inputs)


def test_every_file_of_a_folder_is_a_stream(tmp_path):
    for name, count in (("a", 3), ("b", 2)):
        np.savez(tmp_path / f"{name}.npz", x=np.ones((count, 2), np.float32))
    data = opened(tmp_path, {"x": X, "state": STATE}, count=2)
    assert data.names == ("a.npz[0]", "a.npz[2]") and data.loop.starts == (0, 3)


def test_files_of_one_call_each_are_one_stream(tmp_path):
    for k in range(4):
        np.savez(tmp_path / f"{k}.npz", x=np.full((1, 2), k, np.float32))
    data = opened(tmp_path, {"x": X, "state": STATE})
    assert data.loop.starts == (0,)
    states = [feeds["state"][0, 0, 0] for _, feeds, _ in data.loop.run(range(4), running_total)]
    assert states == [0, 0, 1, 3]


def test_loop_names_an_input_and_its_reader_has_streams(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((3, 2), np.float32))
    with pytest.raises(DataError, match="feeds the input `state`, but the model's inputs are x"):
        opened(tmp_path, {"x": X})
    with pytest.raises(ValueError, match="two outputs feed the input a"):
        DataSection(arrays="x", loop={"one": "a", "two": "a"})
    with pytest.raises(ValueError, match="`loop` belongs to `arrays` and `wav`"):
        DataSection(images="x", loop=LOOP)
