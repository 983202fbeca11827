"""The arithmetic of the `ai.zq2onnx` operators on NVIDIA GPUs: Triton kernels, and which of them runs what.

A node runs as one or two launches: the *prologue*, where there is a branch or activations are rounded, and
a *product*. `problem` states what is asked for, `configurations` what is compiled, `choice` and `launches`
turn one into the other; `manifest` is what a host reads that has no Triton. These need NumPy at most.

`device` holds the kernels themselves, `compilation`, `assembly` and `bundle` compile them ahead of time: they
need Triton, and no GPU.
"""
