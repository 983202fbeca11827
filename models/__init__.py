"""Models in: capture of transformers models as ONNX, and the bundled model with its training script."""
