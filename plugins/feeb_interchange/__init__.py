"""Models of other libraries: importers, exporters, and the tokenizer that comes with an imported model. A folder per part or format.

families.py knows which parts and which names of tensors a Llama, Qwen or GPT-2 has.
"""

from __future__ import annotations

import feebcore as feeb

feeb_tokenizers = feeb.collect(__name__, feeb.TokenizerSpec)
feeb_importers = feeb.collect(__name__, feeb.ImporterSpec)
feeb_exporters = feeb.collect(__name__, feeb.ExporterSpec)
