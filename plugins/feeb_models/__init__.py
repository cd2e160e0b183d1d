"""Built-in models: the transformer, its parts and the objectives. A folder per kind, in it a folder per part or family."""

from __future__ import annotations

import feebcore as feeb

feeb_architectures = feeb.collect(f"{__name__}.architectures", feeb.ArchitectureSpec)
feeb_attentions = feeb.collect(f"{__name__}.attentions", feeb.AttentionSpec)
feeb_feedforwards = feeb.collect(f"{__name__}.feedforwards", feeb.FeedforwardSpec)
feeb_norms = feeb.collect(f"{__name__}.norms", feeb.NormSpec)
feeb_positions = feeb.collect(f"{__name__}.positions", feeb.PositionSpec)
feeb_blocks = feeb.collect(f"{__name__}.blocks", feeb.BlockSpec)
feeb_stacks = feeb.collect(f"{__name__}.stacks", feeb.StackSpec)
feeb_embeddings = feeb.collect(f"{__name__}.embeddings", feeb.EmbeddingSpec)
feeb_lm_heads = feeb.collect(f"{__name__}.lm_heads", feeb.LMHeadSpec)
feeb_initializations = feeb.collect(f"{__name__}.initializations", feeb.InitializationSpec)
feeb_objectives = feeb.collect(f"{__name__}.objectives", feeb.ObjectiveSpec)
