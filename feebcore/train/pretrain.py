"""Train one model: what stages pretrain, sweep and sft call."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from feebcore.data.loader import Prefetch
from feebcore.data.views import scores_by_source
from feebcore.errors import FeebError, Interrupted, RecipeError
from feebcore.evaluate.scorer import chosen_documents, score_documents
from feebcore.model.build import build_model
from feebcore.model.counting import count_flops, hook_optimizer, training_flops
from feebcore.model.fp8 import convert_to_fp8
from feebcore.model.groups import param_groups
from feebcore.model.io import load_model, save_model
from feebcore.model.precision import execution, resolve_device, resolve_precision, scoring_precision
from feebcore.model.transformer import Transformer
from feebcore.protocols import LanguageModel
from feebcore.train import optimizer_schedules
from feebcore.train.callbacks import Callback, RunContext
from feebcore.train.checkpointing import Checkpointing
from feebcore.train.data import Data, Repeated
from feebcore.train.early_stop import recent_loss
from feebcore.train.garbage_collection import GarbageCollection
from feebcore.train.loop import Trainer
from feebcore.train.lr_scaling import LRScale, LRScaling, TrainShape
from feebcore.train.optimizer import Optimizer
from feebcore.train.parallel import SingleProcess, Strategy, make_parallel
from feebcore.train.resume import OriginalRun, resume
from feebcore.train.rollback import RollbackStates
from feebcore.train.step import GradientAccumulator, LossModule, checkpoint_activations
from feebcore.train.validation import Validation, make_evaluation

if TYPE_CHECKING:
    from feebcore.artifacts import StageOutput
    from feebcore.data.store import TokenStore
    from feebcore.parts import Part
    from feebcore.train.config import TrainSection


@dataclass
class TrainResult:
    """metrics: JSON values for the manifest. model: the trained module, in evaluation mode, on the run's device."""

    metrics: dict[str, Any]
    model: nn.Module


def train_model(
    section: TrainSection,
    data: Data,
    val_store: TokenStore | None,
    tokenizer_folder: Path | None,
    folder: Path,
    out: StageOutput,
    *,
    vocab_size: int,
    model: nn.Module | None = None,
    checkpoint: bool = True,
    save: bool = True,
    final_score: bool = True,
    score_documents: int = 0,
    score_tokens: int = 0,
    name: str = "",
    original: OriginalRun | None = None,
) -> TrainResult:
    """Train `section` on `data` and return the model with its metrics.

    folder: where checkpoints/, metrics.jsonl and model/ go. val_store: the validation split, scored whole at the end
    (`final_score`; on `score_documents` of its documents or about `score_tokens` of its tokens, 0: all) and in part every `validation_every` steps. model: continue from this module instead of a fresh one.
    checkpoint: keep state on disk and continue from it. save: write model/. name: of this run among several.
    original: a longer run whose batches are the same for `same_steps`; what its schedules share with this run's is taken from it.
    Raises Interrupted after saving when `out.stop_requested`; Diverged when a loss spike or a non-finite step ends the run.
    """
    began = time.perf_counter()
    with contextlib.ExitStack() as stack:
        device = resolve_device(section.device)
        stack.enter_context(execution(section.threads, section.deterministic, device))
        parallel = make_parallel(section, device)
        stack.callback(parallel.close)
        device = parallel.device
        model = _fresh_model(section, vocab_size, parallel.build_device) if model is None else model
        model = model if parallel.strategy == "fsdp" else model.to(device)
        counts = model.count()  # type: ignore[operator]
        objective = section.objective.build()
        if parallel.build_device.type != "meta":
            try:
                objective.check(model)
            except ValueError as error:
                raise RecipeError(f"pretrain.objective: {error}") from None
        flops_per_token = training_flops(model, objective, section.seq_len)  # type: ignore[arg-type]
        data = Repeated(data, section.overfit_batches) if section.overfit_batches else data
        run = RunContext(section, model, device, Path(folder), out, name, tokenizer_folder=tokenizer_folder, data=data)
        run.precision, run.flops_per_token = resolve_precision(section.precision, device), flops_per_token
        if section.activation_checkpointing:
            checkpoint_activations(model)
        put_back = convert_to_fp8(model) if run.precision == "fp8" else None
        optimizer_schedules.freeze(param_groups(model, frozen=True), section.param_groups)
        scale = lr_scale(section, model)  # asks the model for its sizes, so before it is sharded
        if original is not None:
            original = dataclasses.replace(original, same_steps=min(original.same_steps, same_steps(section, original.max_steps, model)))
        gradients = GradientAccumulator(LossModule(model, objective, run.precision, device), parallel, section.micro_batch, out.log)
        optimizer = build_optimizer(section, model, scale, parallel.world)
        for text in scale_notes(section, scale, optimizer):
            out.log(text)
        multipliers = (None if part is None else part.build(total_steps=section.max_steps) for part in schedules_of(section))
        schedules = optimizer_schedules.OptimizerSchedules(optimizer, *multipliers)  # type: ignore[arg-type]
        callbacks = {f"{i}:{part.name}": part.build() for i, part in enumerate(section.callbacks)} if parallel.is_main else {}
        batches = stack.enter_context(Prefetch(data, section.prefetch, pin=device.type == "cuda")) if section.prefetch else data
        trainer = Trainer(run, batches, gradients, optimizer, schedules, callbacks)
        checkpointing = add_loop_callbacks(trainer, val_store, checkpoint)
        for callback in (*callbacks.values(), *trainer.loop_callbacks):
            stack.callback(callback.on_close)
        whole_run = flops_per_token * section.batch_size * section.seq_len * section.max_steps / parallel.world
        checkpointing.saved_step = resume(trainer, checkpointing.checkpointer, checkpoint, whole_run, original)
        state = trainer.train()
        ended = time.perf_counter()
        trainer.use_eval_weights()
        if put_back is not None and parallel.strategy != "fsdp":
            put_back()
        if parallel.strategy == "fsdp":
            optimizer.state.clear()  # there is a checkpoint of it; the whole model may need the room
        whole, everywhere = parallel.whole_model(model, lambda device: _fresh_model(section.model_copy(update={"init_from": ""}), vocab_size, device))
        run.model = model = whole.eval()
        if not everywhere:
            run.device = torch.device("cpu")
            out.log("the whole model does not fit on every device next to the shards, so it is scored on the first rank's CPU")
        metrics = _metrics(trainer) | {
            "flops": flops_per_token * state.tokens,
            "parameters": {"total": counts.total, "non_embedding": counts.non_embedding, "matmul": counts.matmul},
        }
        if section.lr_scaling is not None:
            metrics["lr_scaling"] = scale.facts()
        if parallel.is_main and save:  # first: what was trained is kept, whatever becomes of the score
            save_model(run.folder / "model", model, section.architecture, tokenizer_folder)
        if val_store is not None and final_score and (everywhere or parallel.is_main):
            together = parallel if everywhere else SingleProcess(run.device)
            metrics |= _score(run, val_store, callbacks, together, score_documents, score_tokens)
        metrics["seconds"] = round(state.elapsed + time.perf_counter() - ended, 3)
        metrics["wall_seconds"] = round(time.perf_counter() - began, 3)
        for callback in (*callbacks.values(), *trainer.loop_callbacks):
            callback.on_end(metrics)
    return TrainResult(metrics, model)


def add_loop_callbacks(trainer: Trainer, val_store: TokenStore | None, checkpoint: bool) -> Checkpointing:
    """What the engine itself does around steps, in the order in which it happens after one."""
    section, out = trainer.section, trainer.run.out
    checkpointing = Checkpointing(trainer, enabled=checkpoint)
    if val_store is not None and section.validation_every:
        evaluate = make_evaluation(section, trainer.run.model, val_store, trainer.gradients, lambda: out.stop_requested)
        trainer.loop_callbacks += [Validation(trainer, evaluate)] if evaluate is not None else []
    trainer.loop_callbacks.append(checkpointing)
    if "rollback" in (section.on_nonfinite, section.on_loss_spike):
        trainer.loop_callbacks.append(RollbackStates(trainer, checkpointing))
    if section.gc_every:
        trainer.loop_callbacks.append(GarbageCollection(section.gc_every))
    return checkpointing


def schedules_of(section: TrainSection) -> tuple[Part, Part | None, Part | None]:
    """Of learning rate, momentum and weight decay."""
    return section.schedule, section.momentum_schedule, section.weight_decay_schedule


def build_optimizer(section: TrainSection, model: nn.Module, scale: LRScale | None = None, world: int = 1) -> Optimizer:
    """The optimizer part over the model's parameters by role and override, with scaled learning rates. scale: what `lr_scale` gave before the
    model was sharded; default: what it gives now. world: ranks that step together."""
    scale = lr_scale(section, model) if scale is None else scale
    optimizer: Optimizer = optimizer_schedules.build_optimizer(section.optimizer, param_groups(model, frozen=True), section.param_groups, scale, world)
    hook_optimizer(model, optimizer)
    return optimizer


def lr_scale(section: TrainSection, model: nn.Module) -> LRScale:
    """The factors of the section's lr_scaling for this model, none without one."""
    if section.lr_scaling is None:
        return LRScale()
    scaling: LRScaling = section.lr_scaling.build()
    return scaling(train_shape(section, model))


def train_shape(section: TrainSection, model: nn.Module) -> TrainShape:
    """What the section's lr_scaling is told of the run."""
    language_model: LanguageModel = model  # type: ignore[assignment]
    counts, head, seq_len = language_model.count(), language_model.lm_head, language_model.seq_len
    weights, flops = sum(p.numel() for p in head.parameters() if p.ndim >= 2), count_flops(head, seq_len)[0] / seq_len
    run = section.batch_size * section.seq_len, section.max_steps
    return TrainShape(*_sizes(model), *run, counts.matmul - weights, weights, 3.0 * (counts.flops_per_token - flops))


def scale_notes(section: TrainSection, scale: LRScale, optimizer: Optimizer) -> list[str]:
    """What the section's lr_scaling set in `optimizer`, and what it could not, a sentence each; without one nothing."""
    if section.lr_scaling is None:
        return []
    name = f"lr_scaling {section.lr_scaling.name}"
    changes = [f"{what} x {_by_role(factors)}" for what, factors in (("learning rates", scale.roles), ("weight decay", scale.weight_decay)) if factors]
    group = next((group for group in optimizer.param_groups if optimizer_schedules.averages_squares(group)), None)
    if group is not None:
        if scale.beta2_power != 1:
            changes.append(f"beta2 {group['betas'][1] if 'betas' in group else group['beta2']:.5g}")
        if scale.eps != 1:
            changes.append(f"eps {group['eps']:.3g}")
    notes = [f"{name}: {', '.join(changes) or 'nothing changes'}"]
    if group is None and (scale.beta2_power, scale.eps) != (1, 1):
        notes.append(f"{name}: optimizer {section.optimizer.name} has no beta2 and eps of an average of squared gradients, so only learning rates are scaled")
    if scale.batch_tokens is not None:
        tokens = section.batch_size * section.seq_len
        notes.append(f"{name}: its source found these rates best with batches of {scale.batch_tokens:,.0f} tokens; this run's have {tokens:,}")
    return notes


def _by_role(factors: dict[str, float]) -> str:
    if len(set(factors.values())) == 1 and len(factors) == 4:
        return f"{next(iter(factors.values())):.4g}"
    return ", ".join(f"{factor:.4g} ({role})" for role, factor in factors.items())


def same_steps(section: TrainSection, longer: int, model: nn.Module) -> int:
    """How many steps the run trains exactly as one of `longer` steps, otherwise the same, would: until a schedule tells the two apart. Their
    batches are the data order's affair."""
    other = section.model_copy(update={"max_steps": longer})
    if lr_scale(section, model) != lr_scale(other, model):
        return 0
    steps = section.max_steps
    for part in schedules_of(section):
        if part is not None:
            one, two = (part.build(total_steps=length) for length in (section.max_steps, longer))
            steps = next((step for step in range(steps) if one(step) != two(step)), steps)
    return steps


def _sizes(model: nn.Module) -> tuple[int, int]:
    """d_model and num_layers: of the transformer as its options have them, of another model as its output shows them."""
    if isinstance(model, Transformer):
        return model.config.d_model, model.config.num_layers
    training = model.training
    with torch.no_grad():
        hidden_BTC = model.eval()(torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device)).hidden
    model.train(training)
    return hidden_BTC.shape[-1], model.num_streams  # type: ignore[return-value]


def _fresh_model(section: TrainSection, vocab_size: int, device: torch.device) -> nn.Module:
    if not section.init_from:
        return build_model(section.architecture, vocab_size, section.seq_len, section.seed, device)
    source = Path(section.init_from)
    source = source / "model" if (source / "model").is_dir() else source
    if not source.is_dir():
        raise FeebError(f"init_from: no model folder {source}")
    model = load_model(source, device)
    if model.vocab_size != vocab_size:
        raise FeebError(f"init_from: the model in {source} has a vocabulary of {model.vocab_size}, the tokens one of {vocab_size}")
    return model


def _metrics(trainer: Trainer) -> dict[str, Any]:
    state = trainer.state
    share = state.waited_seconds / state.timed_seconds if state.timed_seconds else None
    metrics: dict[str, Any] = {
        "steps": state.step,
        "tokens": state.tokens,
        "final_loss": sum(state.recent) / max(1, len(state.recent)),
        "tokens_per_second": round(state.timed_tokens / state.timed_seconds, 1) if state.timed_seconds else None,
        "precision": trainer.run.precision,
        "compiled": bool(trainer.gradients.compiled),
        "data_wait_share": None if share is None else round(share, 5),
    }
    if trainer.parallel.world > 1:
        metrics |= {"ranks": trainer.parallel.world, "strategy": trainer.parallel.strategy}
    if state.began_at:
        metrics["began_at_step"] = state.began_at
    if trainer.early_stop.active:
        metrics["stopped"] = {"by": state.ended or "max_steps", "loss": recent_loss(state)}
    anomalies = {"anomalous_steps": state.anomalous_steps, "rollbacks": state.rollbacks}
    return metrics | {name: steps for name, steps in anomalies.items() if steps}


def _score(
    run: RunContext, store: TokenStore, callbacks: dict[str, Callback], parallel: Strategy, max_documents: int = 0, max_tokens: int = 0
) -> dict[str, Any]:
    """The validation split (or a part of it) by the one definition of bits per byte; of the whole split also each source by itself."""

    def progress(done: float, total: float) -> None:
        run.out.progress(done, total, "tokens", f"{run.name} final validation".strip())
        if parallel.any(run.out.stop_requested):
            raise Interrupted("stopped during the final validation; run the same command again to continue")

    section = run.section
    stride = section.validation_stride or max(1, section.seq_len // 2)
    limits = {"max_documents": max_documents or None, "max_tokens": max_tokens or None}
    precision = scoring_precision(run.precision)
    documents = score_documents(run.model, store, section.seq_len, stride, run.device, precision, progress, ranks=parallel, **limits)  # type: ignore[arg-type]
    score, text_tokens = documents.total(), store.num_tokens - 2 * store.num_documents
    whole = score.tokens == text_tokens
    if not whole:
        key = "score_documents" if max_documents else "score_tokens"
        run.out.log(f"final validation: {score.tokens:,} of {text_tokens:,} tokens ({key}; 0 scores all)")
    for callback in callbacks.values():
        callback.on_validation(run.step, {"loss": score.loss, "bits_per_byte": score.bits_per_byte, "whole_split": whole})
    by_source = scores_by_source(store, documents, chosen_documents(store, max_documents or None, max_tokens or None))
    sources = {name: one.bits_per_byte for name, one in by_source.items()} if whole else {}
    result: dict[str, Any] = {"val_bits_per_byte": score.bits_per_byte, "val_loss": score.loss}
    result |= {"val_loss_by_source": {name: one.loss for name, one in by_source.items()}} if by_source else {}
    return result | ({"val_bits_per_byte_by_source": sources} if sources else {} if whole else {"val_share": round(score.tokens / text_tokens, 4)})
