"""Running graphs: on torch (``executor``), in ONNX Runtime (``ort_session``), as codes (``exact``).

Importing this package loads neither torch nor onnxruntime.
"""
