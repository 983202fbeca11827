"""Folders that serving stacks open as they are: onnxruntime-genai, Triton Inference Server, ONNX Runtime.

    package(Path("model.w4a16.onnx"), Target.GENAI, Path("served"))

Nothing is imported until it is asked for: the command line names the targets in its help.
"""
