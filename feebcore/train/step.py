"""One optimizer step's gradient: forward and backward over micro-batches, and what to do when they do not fit in memory."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from feebcore.errors import FeebError, plural
from feebcore.model.precision import autocast
from feebcore.model.tensors import blocks_of
from feebcore.protocols import Batch, Objective
from feebcore.train import compilation
from feebcore.train.parallel import Strategy

Sums = tuple[Tensor, Tensor, dict[str, Tensor]]


class LossModule(nn.Module):
    """Model and objective as one module, which can be compiled, replicated and sharded whole.

    forward(tokens [B,T], targets [B,T], mask, doc_ids, positions) -> loss_sum, count, sums by name; fp32 scalars.
    """

    def __init__(self, model: nn.Module, objective: Objective, precision: str, device: torch.device) -> None:
        super().__init__()
        self.model, self.objective, self.precision, self.device = model, objective, precision, device

    def forward(self, tokens: Tensor, targets: Tensor, mask: Tensor | None, doc_ids: Tensor | None, positions: Tensor | None) -> Sums:
        with autocast(self.precision, self.device):
            output = self.objective(self.model, Batch(tokens, targets, mask, doc_ids, positions))  # type: ignore[arg-type]
        return output.loss_sum, output.count, output.metrics


class GradientAccumulator:
    """Adds up the gradient of one batch. size: sequences held at once; 0: this rank's whole batch, or what fits in memory."""

    def __init__(self, module: LossModule, parallel: Strategy, size: int, log: Callable[[str], None]) -> None:
        self.module, self.parallel, self.size, self.log = module, parallel, size, log
        self.wrapped = parallel.wrap(module, blocks_of(module.model))
        self.forward: Callable[..., Sums] = self.wrapped
        self.compiled: compilation.Form = ""
        self.warmed_up = False  # forward and backward have run once
        self.fits = False  # they have run next to the optimizer's state, which the first update allocates

    def compile(self, what: compilation.Form) -> None:
        self.compiled = what
        if what == "blocks":
            self.forward = compilation.compiled_blocks(self.wrapped, blocks_of(self.module.model))
        else:
            self.forward = self.parallel.compile(self.wrapped, lambda forward: compilation.compiled(forward))

    @property
    def can_compile_blocks(self) -> bool:
        """Where no block is computed again in the backward pass (it would be so uncompiled), on a CPU, in one process."""
        blocks = blocks_of(self.module.model)
        return self.parallel.world == 1 and self.module.device.type == "cpu" and len(blocks) > 1 and not any(b.recompute for b in blocks)

    def add(self, batch: Batch, divisor: float, seed: int, with_state: bool = True) -> Sums:
        """Backward of loss_sum / divisor through the batch; returns the sums. with_state: the optimizer's state is in memory by now.

        A compile that fails in the first pass, and memory that runs out until a pass has fitted next to the optimizer's state, are
        handled and logged; later failures are errors.
        """
        while True:
            try:
                sums = self._add(batch, divisor, seed)
                self.warmed_up, self.fits = True, self.fits or with_state
                return sums
            except Exception as error:
                if not (self._smaller(batch, error) or self._uncompiled(error)):
                    raise
            # the block above is left, and with it the traceback that holds the activations
            self.module.zero_grad(set_to_none=True)
            if self.module.device.type == "cuda":
                torch.cuda.empty_cache()

    def _add(self, batch: Batch, divisor: float, seed: int) -> Sums:
        torch.manual_seed(seed)
        loss_sums, counts, sums = [], [], collections.defaultdict(list)
        parts = list(micro_batches(batch, self.size or len(batch.tokens), self.module.device))
        for number, part in enumerate(parts):
            with self.parallel.accumulating(self.wrapped, number == len(parts) - 1):
                loss_sum, count, metrics = self.forward(part.tokens, part.targets, part.mask, part.doc_ids, part.positions)
                (loss_sum / divisor).backward()
            loss_sums.append(loss_sum.detach())
            counts.append(torch.as_tensor(count, device=loss_sum.device))
            for key, value in metrics.items():
                sums[key].append(value.detach())
        return sum_of(loss_sums), sum_of(counts), {k: sum_of(v) for k, v in sums.items()}

    def _smaller(self, batch: Batch, error: Exception) -> bool:
        """Half of the micro-batch, where memory ran out and there is something to halve."""
        if self.fits or not out_of_memory(error):
            return False
        size = self.size or len(batch.tokens)
        if size == 1:
            raise FeebError("not one sequence fits in memory; lower seq_len or the model's size, or set activation_checkpointing: true") from error
        if self.parallel.world > 1:  # ranks must agree; this one cannot speak for the others
            raise FeebError(
                f"{plural(size, 'sequence')} at once: too much for the memory of rank {self.parallel.rank}; set micro_batch to {size // 2} or less"
            ) from error
        self.size = next(s for s in range(size // 2, 0, -1) if len(batch.tokens) % s == 0)
        self.log(f"{plural(size, 'sequence')} at once do not fit in memory; continuing with micro_batch: {self.size}")
        return True

    def _uncompiled(self, error: Exception) -> bool:
        if self.warmed_up or not self.compiled or self.parallel.world > 1 or self.module.precision == "fp8":
            return False
        self.log(f"compiling failed ({type(error).__name__}: {str(error).strip().splitlines()[0][:200]}); training runs uncompiled")
        self.compiled, self.forward = "", self.wrapped
        return True


def micro_batches(batch: Batch, size: int, device: torch.device) -> Iterator[Batch]:
    """The batch in slices of `size` sequences, on the device."""
    for i in range(0, len(batch.tokens), size):
        fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(Batch)}
        cut = {k: None if v is None else v[i : i + size].to(device, non_blocking=True) for k, v in fields.items()}
        yield Batch(**cut)  # type: ignore[arg-type]


def sum_of(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).sum()


def out_of_memory(error: BaseException) -> bool:
    """CUDA has an exception of its own for it, the CPU's allocator a RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def checkpoint_activations(model: nn.Module) -> int:
    """Have each block of `model.stack` compute its activations again in the backward pass; the bits stay. Returns their number."""
    blocks = blocks_of(model)
    for block in blocks:
        block.recompute = True
    return len(blocks)
