"""The typed records that hooks yield, one kind per kind, in the order of hookspecs.py.

A spec is cheap: names, options and the *path* of a factory ("package.module:function"), imported when first
used, so that listing parts imports no torch. Every factory is called as `factory(config, ...)`; the docstring
of each spec says with what else and what it returns. The protocols named there live in feebcore/protocols.py.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from feebcore.config import AlgorithmConfig, DataOrderConfig, LogitsProcessorConfig, NoOptions, PartConfig, StageConfig
from feebcore.errors import PluginError

API_VERSION = "1.1"
"""Version of the plugin interface; a release that adds built-in parts or kinds raises the second number."""


@dataclass(frozen=True, kw_only=True)
class _Common:
    summary: str
    reference: str = ""  # paper or URL
    equation: str = ""  # what it computes, a line or two of plain text in the symbols of docs/parts.md; in no fingerprint
    revision: int = 1  # raise when the meaning or a default changes: it is part of every fingerprint
    api: str = API_VERSION  # plugin interface the part was written for
    since: str = "1.0"  # built-in parts: the interface version that introduced them
    distribution: str = field(default="", compare=False)  # filled in by the registry
    origin: str = field(default="", compare=False)  # entry point or file, filled in by the registry


@dataclass(frozen=True)
class PartSpec(_Common):
    """What all parts share.

    name: bare name, `[a-z0-9_]+`. config: options, a PartConfig. build: factory, or "module:attribute" (lazy).
    breaks: names of checks of the kind's contract that the part fails by design, as a negative control does; `feeb check`
    then demands that it fails them.
    """

    options: ClassVar[type[PartConfig]] = PartConfig
    """What the options of this kind derive from."""
    base: ClassVar[str] = ""
    """What its parts derive from, or a protocol whose members they have, as "module:class"; '' for a stage, whose `build` is itself what runs.
    Checked when a part is built."""

    name: str
    config: type[PartConfig] = NoOptions
    build: str | Callable[..., Any] = ""
    breaks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not issubclass(self.config, self.options):
            raise PluginError(f"part {self.name}: its options, {self.config.__name__}, must derive from feeb.{self.options.__name__}")

    @property
    def full_name(self) -> str:
        return f"{self.distribution}/{self.name}" if self.distribution else self.name

    def load(self) -> Callable[..., Any]:
        """Import and return the factory. Raises PluginError when it cannot be imported."""
        return load_object(self.build, self.full_name)


def load_object(target: str | Callable[..., Any], owner: str) -> Callable[..., Any]:
    """The object behind "module:attribute"; PluginError names the owner when that fails."""
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"part {owner}: cannot load {target!r}: {error}") from error


@dataclass(frozen=True)
class Need:
    """An input of a stage: the output of the nearest stage before it in the recipe that makes `kind`.

    name: key in the stage function's `inputs`. kind: default `name`; '*' is whatever a stage makes. optional: left out when no
    stage before it makes the kind. many: all stages before it that make the kind, each in `inputs` under its own name.
    """

    name: str
    kind: str = ""
    many: bool = False
    optional: bool = False

    def met_by(self, makes: Iterable[str]) -> bool:
        """Whether a stage that makes these kinds has what is needed."""
        return self.kind == "*" or (self.kind or self.name) in makes


@dataclass(frozen=True)
class StageSpec(PartSpec):
    """A stage. build: `run(section, inputs, out) -> dict` — inputs: Mapping[str, Artifact], out: StageOutput;
    returns the metrics that the manifest keeps (JSON values).

    makes: the kinds of thing that its folder holds, by which later stages find it. Those of the built-in stages: `documents`
    (documents.parquet), `tokenizer` (tokenizer/), `tokens` (tokens.zarr, tokens.json), `model` (model/), `law`, `scores`, `page`;
    a plugin may add others. Whatever makes a model is evaluated, reported, generated from and exported. needs: its inputs.
    shows: it shows the recipe and its inputs' logs, times and metrics, so these are identity as well as the inputs' content.
    process: 'inline' (runs in the flow's process) or 'worker' (its own subprocess).
    check: "module:function" called as `check(section, recipe) -> list[str]` before anything runs: what is wrong.
    """

    config: type[StageConfig] = StageConfig
    makes: tuple[str, ...] = ()
    needs: tuple[Need, ...] = ()
    shows: bool = False
    process: str = "inline"
    check: str = ""


class SourceSpec(PartSpec):
    """build: `(config, context) -> Source`: a dataset source. The context is not used."""

    base: ClassVar[str] = "feebcore.protocols:Source"


class FilterSpec(PartSpec):
    """build: `(config, context) -> Filter`: polars LazyFrame to LazyFrame on columns text, source, key, num_bytes. The context is not used."""

    base: ClassVar[str] = "collections.abc:Callable"


class TokenizerSpec(PartSpec):
    """build: `(config, context) -> TokenizerTrainer` with `train(texts, folder, progress)` and `load(folder) -> Tokenizer`. The context is not used."""

    base: ClassVar[str] = "feebcore.protocols:TokenizerTrainer"


class PackingSpec(PartSpec):
    """build: `(config, context) -> Packing`: documents to training sequences. context: store (a TokenStore), seq_len."""

    base: ClassVar[str] = "feebcore.protocols:Packing"


@dataclass(frozen=True)
class DataOrderSpec(PartSpec):
    """build: `(config, context) -> DataOrder`: which sequence each sample index gets; stateless. context: num_sequences, seed,
    batch_size, total_steps (0: not known), packing and store (None when a contract check builds it in isolation), and, where the options say `by_source`,
    sources."""

    base: ClassVar[str] = "feebcore.protocols:DataOrder"
    options: ClassVar[type[PartConfig]] = DataOrderConfig
    config: type[PartConfig] = DataOrderConfig


class ArchitectureSpec(PartSpec):
    """build: `(config, context) -> LanguageModel` (torch module); context: vocab_size, seq_len."""

    base: ClassVar[str] = "feebcore.protocols:LanguageModel"


class AttentionSpec(PartSpec):
    """build: `(config, context) -> AttentionPart` (feebcore/model/parts.py): token mixing, called `(x [B,T,C], context) -> [B,T,C]`.
    BuildContext: d_model, num_heads, head_dim, seq_len, vocab_size, layer of num_layers, position, make_norm(dim)."""

    base: ClassVar[str] = "feebcore.model.parts:AttentionPart"


class FeedforwardSpec(PartSpec):
    """build: `(config, context) -> FeedforwardPart`: channel mixing, called `(x [B,T,C], context) -> [B,T,C]`. BuildContext: the same
    fields as for an attention."""

    base: ClassVar[str] = "feebcore.model.parts:FeedforwardPart"


class NormSpec(PartSpec):
    """build: `(config, context) -> nn.Module`, called `(x [...,C]) -> [...,C]`. BuildContext: d_model, the width C."""

    base: ClassVar[str] = "torch.nn:Module"


class PositionSpec(PartSpec):
    """build: `(config, context) -> Position`: position encoding: added to the embedding, applied to queries and keys, or a bias on scores.
    BuildContext: d_model, num_heads, head_dim, seq_len."""

    base: ClassVar[str] = "feebcore.model.position:Position"


class BlockSpec(PartSpec):
    """build: `(config, context) -> BlockPart`: one residual block, called `(stream [B,T,C], context) -> [B,T,C]`. BuildContext: the
    same fields as for an attention, dropout, and make_attention(), make_feedforward(), make_norm(dim=d_model), as many times as it needs."""

    base: ClassVar[str] = "feebcore.model.parts:BlockPart"


class StackSpec(PartSpec):
    """build: `(config, context) -> StackPart`: how blocks are stacked; `(stream, context)` to the streams after every layer and the context
    after the last. BuildContext: make_block(layer), num_layers, d_model, vocab_size, seq_len."""

    base: ClassVar[str] = "feebcore.model.parts:StackPart"


class EmbeddingSpec(PartSpec):
    """build: `(config, context) -> EmbeddingPart`: token embedding, called `(tokens [B,T], context) -> [B,T,C]`. BuildContext: vocab_size,
    d_model, seq_len, make_norm(dim=d_model)."""

    base: ClassVar[str] = "feebcore.model.parts:EmbeddingPart"


class LMHeadSpec(PartSpec):
    """build: `(config, context) -> LMHeadPart`: output head, called `(hidden [...,C]) -> [...,V]`. BuildContext: vocab_size, d_model,
    embedding (the model's), make_block(layer), make_norm(dim=d_model)."""

    base: ClassVar[str] = "feebcore.model.parts:LMHeadPart"


class InitializationSpec(PartSpec):
    """build: `(config, context) -> Callable[[nn.Module, int], None]`: initializes a model with that number of layers in place,
    each module in the loop of `modules_to_draw(model)` (feebcore/model/draws.py), so that weights depend on the seed and the name. Modules with
    their own `init_weights(std, residual_std)` (ModelPart in feebcore/model/counting.py) fill themselves: `draws_own_weights` tells them."""

    base: ClassVar[str] = "collections.abc:Callable"


class ObjectiveSpec(PartSpec):
    """build: `(config, context) -> Objective` (feebcore/protocols.py): the training objective, called `(model, batch) -> ObjectiveOutput`."""

    base: ClassVar[str] = "feebcore.protocols:Objective"


class OptimizerSpec(PartSpec):
    """build: `(config, context) -> Optimizer` (feebcore.train.optimizer); context: groups (ParamGroup, one or more per role),
    world: ranks that hold the same parameters and take the same steps."""

    base: ClassVar[str] = "feebcore.train.optimizer:Optimizer"


class ScheduleSpec(PartSpec):
    """build: `(config, context) -> Callable[[int], float]`: multiplier from 0 to 1 for step 0 .. total_steps - 1 and beyond, a pure
    function of the step; context: total_steps."""

    base: ClassVar[str] = "collections.abc:Callable"


class LRScalingSpec(PartSpec):
    """build: `(config, context) -> Callable[[TrainShape], LRScale]` (feebcore.train.lr_scaling): factors on learning rates and weight
    decay by role, and on Adam's beta2 and eps, for a model, batch and run of this size; a pure function, 1 at the reference."""

    base: ClassVar[str] = "collections.abc:Callable"


class CallbackSpec(PartSpec):
    """build: `(config, context) -> Callback` (feebcore.train.callbacks): a probe or logger in the training loop."""

    base: ClassVar[str] = "feebcore.train.callbacks:Callback"


@dataclass(frozen=True)
class LogitsProcessorSpec(PartSpec):
    """build: `(config, context) -> LogitsProcessor`: logits [B,V] fp32 to logits [B,V], row by row; removed tokens become -inf. The context is not used."""

    base: ClassVar[str] = "collections.abc:Callable"
    options: ClassVar[type[PartConfig]] = LogitsProcessorConfig
    config: type[PartConfig] = LogitsProcessorConfig


class SamplerSpec(PartSpec):
    """build: `(config, context) -> Sampler`: `(logits [B,V] fp32, random: PerRowRNG) -> tokens [B]`, after the logits processors. The context is not used."""

    base: ClassVar[str] = "collections.abc:Callable"


@dataclass(frozen=True)
class AlgorithmSpec(PartSpec):
    """build: `(config, context) -> Algorithm` (feebcore/rl/rollouts.py): advantages, policy loss and, where it has one, critic loss. The context is not used."""

    base: ClassVar[str] = "feebcore.rl.rollouts:Algorithm"
    options: ClassVar[type[PartConfig]] = AlgorithmConfig
    config: type[PartConfig] = AlgorithmConfig


class TaskSpec(PartSpec):
    """build: `(config, context) -> Task`: problems with a verifiable reward; they are split by the hash of their key. The context is not used."""

    base: ClassVar[str] = "feebcore.protocols:Task"


@dataclass(frozen=True)
class BenchmarkSpec(PartSpec):
    """build: `(config, context) -> Benchmark`: `run(target: EvaluatedModel) -> dict[str, JSON]`. needs: kinds of input beyond the model, as
    ("tokens",) for one that reads `target.store`, the validation split."""

    base: ClassVar[str] = "feebcore.evaluate.benchmark:Benchmark"
    needs: tuple[str, ...] = ()


class PlannerSpec(PartSpec):
    """build: `(config, context) -> Planner`: which runs a scaling-law sweep trains."""

    base: ClassVar[str] = "feebcore.scaling.planning:Planner"


class LawSpec(PartSpec):
    """build: `(config, context) -> Law`: a functional form with `fit(points)` and `predict(fit, N, D)`."""

    base: ClassVar[str] = "feebcore.scaling.points:Law"


class ImporterSpec(PartSpec):
    """build: `(config, context) -> Callable[[Path source, Path folder], None]`: another format to a feeb model folder."""

    base: ClassVar[str] = "collections.abc:Callable"


class ExporterSpec(PartSpec):
    """build: `(config, context) -> Callable[[Path folder, Path target], None]`: a feeb model folder to another format."""

    base: ClassVar[str] = "collections.abc:Callable"
