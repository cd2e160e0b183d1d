"""Every kind of the system: one hook per kind of part, in the order of specs.py.

A plugin is a module with some of these functions, decorated with `@feebcore.hookimpl`. Each takes no argument
and yields specs. The docstring of each hook is a plugin; docs/extension-points.md explains and a test executes them.
"""

from __future__ import annotations

from collections.abc import Iterable

import pluggy

from feebcore import specs

PROJECT = "feeb"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def feeb_stages() -> Iterable[specs.StageSpec]:  # type: ignore[empty-body]
    """A stage of the chain: what it needs, what it makes.

    Example::

        import feebcore as feeb

        class CountConfig(feeb.StageConfig):
            lowercase: bool = True

        @feeb.hookimpl
        def feeb_stages():
            yield feeb.StageSpec(
                "count_words", CountConfig, build="idea:run", needs=(feeb.Need("documents"),), makes=("counts",), summary="Counts words."
            )
    """


@hookspec
def feeb_sources() -> Iterable[specs.SourceSpec]:  # type: ignore[empty-body]
    """Where documents come from.

    Example::

        import feebcore as feeb

        class NotesConfig(feeb.PartConfig):
            folder: str

        @feeb.hookimpl
        def feeb_sources():
            yield feeb.SourceSpec("notes", NotesConfig, build="idea:build", summary="My notes.")
    """


@hookspec
def feeb_filters() -> Iterable[specs.FilterSpec]:  # type: ignore[empty-body]
    """Document filters, normalizers and deduplication, polars LazyFrame to LazyFrame.

    Example::

        import feebcore as feeb

        @feeb.hookimpl
        def feeb_filters():
            yield feeb.FilterSpec("ascii_only", build="idea:build", summary="Drops documents with other characters.")
    """


@hookspec
def feeb_tokenizers() -> Iterable[specs.TokenizerSpec]:  # type: ignore[empty-body]
    """Trainer and codec.

    Example::

        import feebcore as feeb

        class WordsConfig(feeb.PartConfig):
            vocab_size: int = 1000

        @feeb.hookimpl
        def feeb_tokenizers():
            yield feeb.TokenizerSpec("words", WordsConfig, build="idea:build", summary="One token a word.")
    """


@hookspec
def feeb_packings() -> Iterable[specs.PackingSpec]:  # type: ignore[empty-body]
    """Packings: documents to training sequences.

    Example::

        import feebcore as feeb

        @feeb.hookimpl
        def feeb_packings():
            yield feeb.PackingSpec("one_document", build="idea:build", summary="A sequence never spans two documents.")
    """


@hookspec
def feeb_data_orders() -> Iterable[specs.DataOrderSpec]:  # type: ignore[empty-body]
    """The order of the training sequences.

    Example::

        import feebcore as feeb

        @feeb.hookimpl
        def feeb_data_orders():
            yield feeb.DataOrderSpec("easy_first", build="idea:build", summary="Short documents first.")
    """


@hookspec
def feeb_architectures() -> Iterable[specs.ArchitectureSpec]:  # type: ignore[empty-body]
    """A whole model.

    Example::

        import feebcore as feeb

        @feeb.hookimpl
        def feeb_architectures():
            yield feeb.ArchitectureSpec("bigram", build="idea:build", summary="A table of next-token scores.")
    """


@hookspec
def feeb_attentions() -> Iterable[specs.AttentionSpec]:  # type: ignore[empty-body]
    """Attention: token mixing.

    Example::

        import feebcore as feeb

        @feeb.hookimpl
        def feeb_attentions():
            yield feeb.AttentionSpec("mean", build="idea:build", summary="Mean of all earlier positions.")
    """


@hookspec
def feeb_feedforwards() -> Iterable[specs.FeedforwardSpec]:  # type: ignore[empty-body]
    """Feedforward: channel mixing.

    Example::

        import feebcore as feeb

        @feeb.hookimpl
        def feeb_feedforwards():
            yield feeb.FeedforwardSpec("sine", build="idea:build", summary="Sine activation.")
    """


@hookspec
def feeb_norms() -> Iterable[specs.NormSpec]:  # type: ignore[empty-body]
    """Normalization.

    Example::

        import feebcore as feeb

        @feeb.hookimpl
        def feeb_norms():
            yield feeb.NormSpec("l1norm", build="idea:build", summary="Divides by the mean magnitude.")
    """


@hookspec
def feeb_positions() -> Iterable[specs.PositionSpec]:  # type: ignore[empty-body]
    """Position encoding.

    Example::

        import feebcore as feeb

        @feeb.hookimpl
        def feeb_positions():
            yield feeb.PositionSpec("linear", build="idea:build", summary="A learned ramp.")
    """


@hookspec
def feeb_blocks() -> Iterable[specs.BlockSpec]:  # type: ignore[empty-body]
    """Residual block: how attention, feedforward and norms are connected.

    Example::

        import feebcore as feeb

        @feeb.hookimpl
        def feeb_blocks():
            yield feeb.BlockSpec("postnorm", build="idea:build", summary="Norm after the sum.")
    """


@hookspec
def feeb_stacks() -> Iterable[specs.StackSpec]:  # type: ignore[empty-body]
    """How blocks are stacked.

    Example::

        import feebcore as feeb

        @feeb.hookimpl
        def feeb_stacks():
            yield feeb.StackSpec("twice", build="idea:build", summary="Every block runs twice.")
    """


@hookspec
def feeb_embeddings() -> Iterable[specs.EmbeddingSpec]:  # type: ignore[empty-body]
    """Token embedding.

    Example::

        import feebcore as feeb

        @feeb.hookimpl
        def feeb_embeddings():
            yield feeb.EmbeddingSpec("hashed", build="idea:build", summary="Two hashed tables.")
    """


@hookspec
def feeb_lm_heads() -> Iterable[specs.LMHeadSpec]:  # type: ignore[empty-body]
    """Language-model heads: hidden states to logits.

    Example::

        import feebcore as feeb

        @feeb.hookimpl
        def feeb_lm_heads():
            yield feeb.LMHeadSpec("cosine", build="idea:build", summary="Cosine with the embedding.")
    """


@hookspec
def feeb_initializations() -> Iterable[specs.InitializationSpec]:  # type: ignore[empty-body]
    """Initial weights.

    Example::

        import feebcore as feeb

        @feeb.hookimpl
        def feeb_initializations():
            yield feeb.InitializationSpec("orthogonal", build="idea:build", summary="Orthogonal matrices.")
    """


@hookspec
def feeb_objectives() -> Iterable[specs.ObjectiveSpec]:  # type: ignore[empty-body]
    """Training objectives.

    Example::

        import feebcore as feeb

        class FocalConfig(feeb.PartConfig):
            gamma: float = 2.0

        @feeb.hookimpl
        def feeb_objectives():
            yield feeb.ObjectiveSpec("focal", FocalConfig, build="idea:build", summary="Down-weights easy tokens.")
    """


@hookspec
def feeb_optimizers() -> Iterable[specs.OptimizerSpec]:  # type: ignore[empty-body]
    """Optimizers (update rules).

    Example::

        import feebcore as feeb
        from pydantic import Field

        class LionConfig(feeb.PartConfig):
            lr: float = Field(3e-4, description="learning rate")
            betas: tuple[float, float] = Field((0.9, 0.99), description="decay rates of the momentum")

        @feeb.hookimpl
        def feeb_optimizers():  # feeb_lion/optim.py: class Lion(feebcore.train.optimizer.Optimizer), with __init__(self, config, context)
            yield feeb.OptimizerSpec("lion", LionConfig, build="feeb_lion.optim:Lion", summary="Sign of the momentum.", reference="arXiv:2302.06675")
    """


@hookspec
def feeb_schedules() -> Iterable[specs.ScheduleSpec]:  # type: ignore[empty-body]
    """Learning-rate schedules: a multiplier as a pure function of the step.

    Example::

        import feebcore as feeb

        def sawtooth(config, context):
            return lambda step: 1 - step % 100 / 100

        @feeb.hookimpl
        def feeb_schedules():
            yield feeb.ScheduleSpec("sawtooth", build=sawtooth, summary="Linear decay with a restart every 100 steps.")
    """


@hookspec
def feeb_lr_scalings() -> Iterable[specs.LRScalingSpec]:  # type: ignore[empty-body]
    """Learning-rate scalings: learning rates transferred to another model or batch size.

    Example::

        import feebcore as feeb

        def by_width(config, context):
            from feebcore.train.lr_scaling import LRScale

            return lambda shape: LRScale({"matrix": 256 / shape.d_model})

        @feeb.hookimpl
        def feeb_lr_scalings():
            yield feeb.LRScalingSpec("by_width", build=by_width, summary="Learning rates of matrices scale as 1 / width.")
    """


@hookspec
def feeb_callbacks() -> Iterable[specs.CallbackSpec]:  # type: ignore[empty-body]
    """Callbacks: probes and loggers in the training loop.

    Example::

        import feebcore as feeb
        from feebcore.train.callbacks import Callback

        class Bell(Callback):
            def on_end(self, metrics):
                self.run.out.log("ding")

        @feeb.hookimpl
        def feeb_callbacks():
            yield feeb.CallbackSpec("bell", build=Bell, summary="Logs a message at the end.")
    """


@hookspec
def feeb_logits_processors() -> Iterable[specs.LogitsProcessorSpec]:  # type: ignore[empty-body]
    """Logits processors.

    Example::

        import feebcore as feeb

        @feeb.hookimpl
        def feeb_logits_processors():
            yield feeb.LogitsProcessorSpec("no_digits", build="idea:build", summary="Forbids digits.")
    """


@hookspec
def feeb_samplers() -> Iterable[specs.SamplerSpec]:  # type: ignore[empty-body]
    """Decoding strategies.

    Example::

        import feebcore as feeb

        @feeb.hookimpl
        def feeb_samplers():
            yield feeb.SamplerSpec("second_best", build="idea:build", summary="Takes the runner-up.")
    """


@hookspec
def feeb_algorithms() -> Iterable[specs.AlgorithmSpec]:  # type: ignore[empty-body]
    """RL: advantage and policy loss.

    Example::

        import feebcore as feeb

        @feeb.hookimpl
        def feeb_algorithms():
            yield feeb.AlgorithmSpec("reinforce", build="idea:build", summary="Plain policy gradient.")
    """


@hookspec
def feeb_tasks() -> Iterable[specs.TaskSpec]:  # type: ignore[empty-body]
    """Prompts with a verifiable reward.

    Example::

        import feebcore as feeb

        class ReverseConfig(feeb.PartConfig):
            length: int = 4

        @feeb.hookimpl
        def feeb_tasks():
            yield feeb.TaskSpec("reverse", ReverseConfig, build="idea:build", summary="Write a word backwards.")
    """


@hookspec
def feeb_benchmarks() -> Iterable[specs.BenchmarkSpec]:  # type: ignore[empty-body]
    """Evaluation suites.

    Example::

        import feebcore as feeb

        @feeb.hookimpl
        def feeb_benchmarks():
            yield feeb.BenchmarkSpec("copying", build="idea:build", summary="Repeats a string.")
    """


@hookspec
def feeb_planners() -> Iterable[specs.PlannerSpec]:  # type: ignore[empty-body]
    """Which sweep cells to run.

    Example::

        import feebcore as feeb

        @feeb.hookimpl
        def feeb_planners():
            yield feeb.PlannerSpec("grid", build="idea:build", summary="Every size at every budget.")
    """


@hookspec
def feeb_laws() -> Iterable[specs.LawSpec]:  # type: ignore[empty-body]
    """Functional forms to fit.

    Example::

        import feebcore as feeb

        @feeb.hookimpl
        def feeb_laws():
            yield feeb.LawSpec("power", build="idea:build", summary="A power law in compute.")
    """


@hookspec
def feeb_importers() -> Iterable[specs.ImporterSpec]:  # type: ignore[empty-body]
    """Other formats to feeb models.

    Example::

        import feebcore as feeb

        @feeb.hookimpl
        def feeb_importers():
            yield feeb.ImporterSpec("npz", build="idea:build", summary="Reads NumPy archives.")
    """


@hookspec
def feeb_exporters() -> Iterable[specs.ExporterSpec]:  # type: ignore[empty-body]
    """Feeb models to other formats.

    Example::

        import feebcore as feeb

        @feeb.hookimpl
        def feeb_exporters():
            yield feeb.ExporterSpec("npz", build="idea:build", summary="Writes NumPy archives.")
    """


KINDS: dict[str, type[specs.PartSpec]] = {
    "stages": specs.StageSpec,
    "sources": specs.SourceSpec,
    "filters": specs.FilterSpec,
    "tokenizers": specs.TokenizerSpec,
    "packings": specs.PackingSpec,
    "data_orders": specs.DataOrderSpec,
    "architectures": specs.ArchitectureSpec,
    "attentions": specs.AttentionSpec,
    "feedforwards": specs.FeedforwardSpec,
    "norms": specs.NormSpec,
    "positions": specs.PositionSpec,
    "blocks": specs.BlockSpec,
    "stacks": specs.StackSpec,
    "embeddings": specs.EmbeddingSpec,
    "lm_heads": specs.LMHeadSpec,
    "initializations": specs.InitializationSpec,
    "objectives": specs.ObjectiveSpec,
    "optimizers": specs.OptimizerSpec,
    "schedules": specs.ScheduleSpec,
    "lr_scalings": specs.LRScalingSpec,
    "callbacks": specs.CallbackSpec,
    "logits_processors": specs.LogitsProcessorSpec,
    "samplers": specs.SamplerSpec,
    "algorithms": specs.AlgorithmSpec,
    "tasks": specs.TaskSpec,
    "benchmarks": specs.BenchmarkSpec,
    "planners": specs.PlannerSpec,
    "laws": specs.LawSpec,
    "importers": specs.ImporterSpec,
    "exporters": specs.ExporterSpec,
}
"""PartKey name to the spec class its hook yields; the hook of kind `x` is `feeb_x`."""
