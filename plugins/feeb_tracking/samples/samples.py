"""Text that the model generates during training: samples.jsonl with rows step, prompt, text."""

from __future__ import annotations

import json
from typing import Any

import torch

from feeb_tracking.probe import is_sharded
from feeb_tracking.row_files import keep_until
from feebcore.files import explain
from feebcore.generate.engine import generate
from feebcore.train.callbacks import Callback, RunContext

FILE = "samples.jsonl"


class Samples(Callback):
    """State: none. Generation runs without gradients, seeded by the run's seed and step."""

    tokenizer: Any = None

    def on_start(self, run: RunContext) -> None:
        super().on_start(run)
        self.tokenizer = run.tokenizer()
        keep_until(run.folder / FILE, run.step)

    def due(self, step: int) -> bool:
        return step % self.config.every == 0 and not is_sharded(self.run)

    def on_step_end(self, step: int, metrics: dict[str, Any]) -> None:
        if self.due(step):
            self.sample(step)

    def on_end(self, metrics: dict[str, Any]) -> None:
        rows = self.run.folder / FILE
        if not rows.exists() or f'"step": {self.run.step},' not in rows.read_text(encoding="utf-8"):
            self.sample(self.run.step)

    def sample(self, step: int) -> None:
        run, config = self.run, self.config
        if self.tokenizer is None:
            return
        model, length = run.model, run.section.seq_len
        prompts = [[self.tokenizer.bos_id, *self.tokenizer.encode(text)][: length - 1] for text in config.prompts]
        room = min(config.max_new_tokens, length - max(map(len, prompts)))
        was_training = model.training
        model.eval()
        seed = run.section.seed * 1_000_003 + step
        with torch.no_grad():
            completions = generate(model, prompts, room, self.tokenizer.eos_id, [lambda logits: logits / config.temperature], seed=seed)  # type: ignore[arg-type]
        model.train(was_training)
        try:
            with open(run.folder / FILE, "a", encoding="utf-8") as stream:
                for prompt, completion in zip(config.prompts, completions, strict=True):
                    row = {"step": step, "prompt": prompt, "text": self.tokenizer.decode(completion.tokens), "finish_reason": completion.finish_reason}
                    stream.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise explain(error, run.folder / FILE) from error
