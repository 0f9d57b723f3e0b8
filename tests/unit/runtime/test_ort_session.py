"""Sources of weights for ONNX Runtime: bytes, the model's external files, a temporary file."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from models import big_conv, feeds_for, run

from qtool import files
from qtool.loading import load_model
from qtool.runtime import ort_session
from qtool.runtime.ort_session import OrtSession, loads_ir_version


@pytest.fixture
def sources(monkeypatch):
    """Return the list that collects the sources of sessions."""
    seen: list[bytes | str] = []
    real = ort_session._source

    def spy(model, options):
        inner = real(model, options)
        enter = inner.__enter__

        class Spied:
            def __enter__(self):
                seen.append(enter())
                return seen[-1]

            def __exit__(self, *error):
                return inner.__exit__(*error)

        return Spied()

    monkeypatch.setattr(ort_session, "_source", spy)
    return seen


def mapped(tmp_path, monkeypatch) -> ir.Model:
    (tmp_path / "deep").mkdir()
    path = tmp_path / "m.onnx"
    onnx.save(
        big_conv().proto(), path, save_as_external_data=True, location="deep/w", size_threshold=0
    )
    monkeypatch.setattr(files, "MAPPED_BYTES", 10_000)
    return load_model(path).model


def test_mapped_weights_are_named_not_copied(tmp_path, monkeypatch, sources):
    model = mapped(tmp_path, monkeypatch)
    feeds = feeds_for(model)
    with OrtSession(model, threads=1) as session:
        np.testing.assert_array_equal(session(feeds)["y"], run(big_conv().proto(), feeds)["y"])
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values())
    assert isinstance(sources[0], bytes) and len(sources[0]) < 2000 < 18_000 < weights


def test_too_many_weights_in_memory_go_to_a_file_that_does_not_stay(tmp_path, monkeypatch, sources):
    onnx.save(big_conv().proto(), tmp_path / "m.onnx")
    model = load_model(tmp_path / "m.onnx").model
    monkeypatch.setattr(files, "MAPPED_BYTES", 10_000)
    feeds = feeds_for(model)
    with OrtSession(model, threads=1) as session:
        assert isinstance(sources[0], str) and not Path(sources[0]).parent.exists()
        np.testing.assert_array_equal(session(feeds)["y"], run(model, feeds)["y"])
    assert not any(
        isinstance(v.const_value, ir.ExternalTensor) for v in model.graph.initializers.values()
    )


def test_a_version_of_the_format_that_the_runtime_does_not_load_is_seen():
    assert loads_ir_version(10)
    assert not loads_ir_version(2000)
