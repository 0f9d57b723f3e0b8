"""Quantize with NNCF's accuracy control.

The words are the float model, the samples, the file to write, NNCF's kind of model, the largest
drop in points and the threads.
"""

import sys
import time

import nncf
import onnx
import onnxruntime

from benchmarks.peer_programs.task import Feed, print_result, read_samples


def _feeds(row: Feed) -> Feed:
    return {n: a for n, a in row.items() if n != "label"}


def main() -> None:
    source, samples, target, model_type, max_drop, threads = sys.argv[1:]

    def validate(model: onnx.ModelProto, dataset: list[Feed]) -> tuple[float, list[float]]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(threads)
        run = onnxruntime.InferenceSession(model.SerializeToString(), options)
        hits = [float(run.run(None, _feeds(r))[0].argmax() == r["label"][0]) for r in dataset]
        return sum(hits) / len(hits), hits

    is_transformer = model_type == "transformer"
    options = {"model_type": nncf.ModelType.TRANSFORMER} if is_transformer else {}
    start = time.perf_counter()
    model = nncf.quantize_with_accuracy_control(
        onnx.load(source),
        nncf.Dataset(read_samples(samples, "calibrate/"), _feeds),
        nncf.Dataset(read_samples(samples, "validate/")),
        validate,
        max_drop=float(max_drop) / 100,
        drop_type=nncf.DropType.ABSOLUTE,
        **options,
    )
    seconds = time.perf_counter() - start
    onnx.save(model, target)
    print_result(seconds, ("nncf", "onnxruntime"))


if __name__ == "__main__":
    main()
