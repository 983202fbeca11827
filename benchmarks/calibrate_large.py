"""Time and memory of calibrating a model of 302 M parameters: OPT of 24 layers, width 1024, random weights.

    python benchmarks/calibrate_large.py             128 x 512 tokens: most of an hour on two cores
    python benchmarks/calibrate_large.py --samples 8 --layers 4

The conversion runs in a process of its own. Exits with 1 where its peak memory is over the bar.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

TINY = Path(__file__).resolve().parents[1] / "models" / "tiny"
TEXT = Path(__file__).resolve().parents[2] / "shared" / "data" / "calibration.txt"
PEAK_BYTES = 1_500_000_000

_CONVERT = """
import json, sys, time
import zq2onnx
given = json.loads(sys.argv[1])
started = time.monotonic()
def tell(done, total):
    print(f"{time.monotonic() - started:7.0f} s  block {done} of {total}", file=sys.stderr, flush=True)
report = zq2onnx.convert(**given, block_progress=tell, check="none", force=True)
errors = [node.output_error for node in report.quantized]
print(json.dumps({"seconds": report.seconds, "peak": report.peak_rss_bytes, "worst": max(errors)}))
"""


def write_model(path: Path, layers: int) -> int:
    """Export an untrained OPT; returns the number of parameters of its linear layers."""
    import torch
    from transformers import OPTConfig, OPTForCausalLM

    from zq2onnx.models import capture

    config = OPTConfig(
        vocab_size=4096,
        hidden_size=1024,
        word_embed_proj_dim=1024,
        ffn_dim=4096,
        num_hidden_layers=layers,
        num_attention_heads=16,
        max_position_embeddings=2048,
    )
    torch.manual_seed(0)
    folder = path.parent / "checkpoint"
    OPTForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(TINY / name, folder / name)
    capture.export(folder, path, cache=False)
    return layers * 12 * config.hidden_size**2


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--method", default="gptq")
    parser.add_argument("--objective", default="layer", help="layer or model")
    parser.add_argument("--folder", type=Path, help="where the model is kept between runs")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zq2onnx-") as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(exist_ok=True)
        model = folder / f"opt-{given.layers}.onnx"
        if not model.exists():
            print(f"{write_model(model, given.layers) / 1e6:.0f} M parameters in linear layers", flush=True)
        options = {
            "model": str(model),
            "output": str(folder / "out.onnx"),
            "calib": str(TEXT),
            "tokenizer": str(TINY),
            "calib_samples": given.samples,
            "calib_length": given.length,
            "method": given.method,
            "objective": given.objective,
        }
        command = [sys.executable, "-c", _CONVERT, json.dumps(options)]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result = json.loads(said.splitlines()[-1])
    held = result["peak"] <= PEAK_BYTES
    print(f"{result['seconds']:.0f} s, peak {result['peak'] / 1e6:.0f} MB {'' if held else 'OVER'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
