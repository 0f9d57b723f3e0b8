"""Execution of graphs: on torch (``executor``), in ONNX Runtime (``ort_session``, ``ort_node``).

Importing this package loads neither torch nor onnxruntime.
"""
