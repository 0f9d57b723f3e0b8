"""Run float graphs: on torch (``executor``) and in ONNX Runtime (``ort_session``, ``ort_node``).

Importing this package loads neither torch nor onnxruntime.
"""
