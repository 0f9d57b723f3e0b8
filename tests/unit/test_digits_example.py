"""The embedded default is what its README and its recipe say."""

import sys

import numpy as np
import onnxruntime
import yaml
from PIL import Image

from qtool.recipe.loader import load_recipe


def test_the_images_are_written_once(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(digits), *sys.path])
    from prepare import prepare

    assert prepare(tmp_path / "data") is True
    assert prepare(tmp_path / "data") is False
    assert [path.name for path in tmp_path.iterdir()] == ["data"], "a scratch folder is left"
    for part, count in [("train", 1347), ("test", 450)]:
        images = sorted((tmp_path / "data" / part).glob("[0-9]/*.png"))
        assert len(images) == count
        again = digits / "data" / part / images[0].parent.name / images[0].name
        assert images[0].read_bytes() == again.read_bytes()


def test_the_recipe_reads_and_the_float_network_is_right_on_448_of_450(digits):
    recipe = load_recipe(digits / "int8.yaml")
    assert recipe.evaluate.metric == "top1"
    how = yaml.safe_load((digits / "int8.yaml").read_text())["calibrate"]["preprocess"]
    paths = sorted((digits / "data" / "test").glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(path).convert("L"), np.float32) for path in paths])
    x = (pixels[:, None] / 255 - how["mean"][0]) / how["std"][0]
    session = onnxruntime.InferenceSession(
        digits / "digits.onnx", providers=["CPUExecutionProvider"]
    )
    scores = session.run(["scores"], {"image": x.astype(np.float32)})[0]
    right = sum(
        int(path.parent.name) == best for path, best in zip(paths, scores.argmax(1), strict=True)
    )
    # one image either way: another CPU adds the float sums in another order
    assert abs(right - 448) <= 1
