"""Generating text with a key-value cache, on a host that has NumPy and ONNX Runtime and nothing else of ours.

    generator = Generator("model.onnx")          # or the folder that `zq2onnx package` made
    for (token,) in generator.stream([prompt_ids], 64):
        ...

Greedy, by IO binding: what a run returns as keys and values is given to the next one without a copy through
NumPy. Tokens go in and come out; what they mean is the tokenizer's matter.
"""

from zq2onnx.runtime.serving.folder import Deployed, find_model
from zq2onnx.runtime.serving.generator import Generator
from zq2onnx.runtime.serving.settings import TextSettings, read_settings

__all__ = ["Deployed", "Generator", "TextSettings", "find_model", "read_settings"]
