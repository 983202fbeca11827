"""A packaged model opened by optimum's ORTModelForCausalLM, as docs/deploy.md says.

    python tests/runtimes/run_optimum.py [--folder DIR]

Makes an environment for it (kept in --folder), for it pins an older transformers than the rest needs, runs
the page's program there on the bundled model in 4 bits, and compares the text with that of `Generator`. Not
part of the suite: it needs a package index and minutes.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from tokenizers import Tokenizer

import zq2onnx
from zq2onnx.models import capture
from zq2onnx.packaging.package import package
from zq2onnx.packaging.target import Target
from zq2onnx.runtime.serving import Generator

ROOT = Path(__file__).resolve().parent.parent.parent
PROMPT, COUNT = "Once upon a time", 32
TORCH = "torch==2.13.*"


def environment(folder: Path) -> Path:
    """The Python of an environment with optimum."""
    python = folder / "optimum" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder / "optimum"], check=True)
        install = [python, "-m", "pip", "install", "--quiet", TORCH, "optimum-onnx[onnxruntime]"]
        subprocess.run(install, check=True)
    return python


def program() -> str:
    """What the page says."""
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    found = re.search(r"^## optimum\n.*?```python\n(.*?)```", page, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def served(folder: Path) -> str:
    """Package the bundled model there; returns the text that is expected of it."""
    capture.export(ROOT / "models" / "tiny", folder / "model.onnx")
    zq2onnx.convert(folder / "model.onnx", folder / "w4.onnx", group_size=32, check="none")
    package(folder / "w4.onnx", Target.GENAI, folder / "served", fused=True)
    tokenizer = Tokenizer.from_file(str(folder / "served" / "tokenizer.json"))
    ids = tokenizer.encode(PROMPT).ids
    made = [token for (token,) in Generator(folder / "served").stream([ids], COUNT) if token is not None]
    text: str = tokenizer.decode(ids + made, skip_special_tokens=False)
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "zq2onnx-runtimes")
    arguments = parser.parse_args()
    arguments.folder.mkdir(exist_ok=True)
    python = environment(arguments.folder)
    with tempfile.TemporaryDirectory() as temporary:
        expected = served(Path(temporary))
        done = subprocess.run([python, "-c", program()], cwd=temporary, capture_output=True, text=True)
    if done.returncode != 0:
        print(done.stderr, file=sys.stderr)
        return 1
    same = done.stdout == expected + "\n"
    print(done.stdout if same else f"optimum: {done.stdout!r}\nexpected: {expected!r}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
