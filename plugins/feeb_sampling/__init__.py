"""Built-in logits processors and samplers, a folder each: what happens between a model's logits and the next token.

A recipe lists logits processors in the order in which they run: `logits_processors: [{name: temperature, temperature: 0.8}, top_p]`.
"""

from __future__ import annotations

import feebcore as feeb

feeb_logits_processors = feeb.collect(f"{__name__}.logits_processors", feeb.LogitsProcessorSpec)
feeb_samplers = feeb.collect(f"{__name__}.samplers", feeb.SamplerSpec)
