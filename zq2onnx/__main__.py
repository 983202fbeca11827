"""`python -m zq2onnx`: the command line."""

from __future__ import annotations

import sys

from zq2onnx.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
