"""Several processes that train one model: what the loop asks of them. One process is the plain case, and needs nothing.

Ranks take the slots rank::world of every batch, gradients are summed over ranks, and every number that is reported is a
sum over ranks divided by a global count, so that a run means the same for any number of ranks. Two strategies:

ddp: every rank holds the whole model (torch's DistributedDataParallel). Gradients are summed where torch would average
    them, in buckets that stay the same from the first step on, so that a resumed run adds in the same order.
fsdp: weights, gradients and optimizer state are sharded over ranks along their first dimension (torch's fully_shard,
    arXiv:2304.11277), gathered a block at a time, in fp32: so every number has the dtype that it has in one process. Each
    micro-batch's gradient is exchanged: a whole one is never held. The whole model is in no device's memory while it trains: it is built
    and loaded in rank 0's, shared out a block at a time, and gathered a tensor at a time at the end, on every device if it fits there.

torchrun's environment (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) says who is who; ranks that feeb starts
itself on one machine meet through a file instead (RENDEZVOUS), as a port could be taken by then. CUDA talks NCCL, the CPU Gloo.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from feebcore.errors import FeebError
from feebcore.model.parts import BlockPart
from feebcore.model.tensors import replace_tensors
from feebcore.train.dtensor import is_sharded, local_shard

if TYPE_CHECKING:
    from feebcore.train.parallel_config import ParallelConfig

RENDEZVOUS = "FEEB_RENDEZVOUS"
"""Environment variable: the file through which the ranks of one machine meet."""

COLLECTIVE_TIMEOUT = datetime.timedelta(hours=1)
"""How long a rank waits for another. Dead ones are noticed at once; this is for slow ones: compiling, a big checkpoint."""


STEP_TIMEOUT = datetime.timedelta(minutes=10)
"""The same once the first step is done and all is compiled: a rank that hangs then costs minutes. Long enough for what rank 0 does by
itself between steps, samples and probes."""


class Channel:
    """Short texts between ranks, in a process group of its own, so that a thread may use it during training."""

    def __init__(self, group: Any = None) -> None:
        self._group = group

    def all_gather_text(self, text: str) -> list[str]:
        """The text of every rank, in order of rank. Every rank must call it."""
        if self._group is None:
            return [text]
        content = text.encode()
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(sizes, torch.tensor([len(content)]), group=self._group)
        padded = torch.zeros(max(1, *(int(s) for s in sizes)), dtype=torch.uint8)
        padded[: len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else 0
        texts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(texts, padded, group=self._group)
        return [t[: int(s)].numpy().tobytes().decode() for t, s in zip(texts, sizes, strict=True)]


class Strategy:
    """How the processes of a run work together. rank: of this process among `world`. strategy: none, ddp or fsdp. device: of this rank.

    The defaults are those of one process.
    """

    strategy = "none"

    def __init__(self, device: torch.device | None = None, rank: int = 0, world: int = 1) -> None:
        self.device, self.rank, self.world = device or torch.device("cpu"), rank, world

    @property
    def is_main(self) -> bool:
        """Whether this rank writes the files that all share."""
        return self.rank == 0

    @property
    def build_device(self) -> torch.device:
        """Where this rank builds the model that it wraps; on meta the weights come from another rank."""
        return self.device

    def wrap(self, module: nn.Module, blocks: Sequence[nn.Module] = ()) -> nn.Module:
        """The module to call in training. It may be changed in place (sharded) or wrapped (replicated). blocks: parts of it
        that are sharded one by one.

        Wrap before the optimizer is made, as sharding replaces the parameters; compile what comes back, with `compile`.
        """
        return module

    def compile(self, module: nn.Module, compiler: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[..., Any]:
        """What `wrap` returned, compiled: the computation inside is, the exchange around it is not."""
        return compiler(module)

    def accumulating(self, module: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
        """Around forward and backward of a micro-batch: gradients are exchanged with the last one only, where that saves time."""
        return contextlib.nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over ranks of `values` [K], the same on every rank."""
        return values

    def grad_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """L2 norm of the whole gradient, over all ranks where it is sharded. fp32 scalar."""
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients))))

    def whole_model(self, model: nn.Module, build: Callable[[torch.device], nn.Module]) -> tuple[nn.Module, bool]:
        """The trained model, and whether every rank has it whole: itself or, where it is sharded, one with the same weights on each rank's
        device, if it fits next to the shards on all of them; else on rank 0 one on the CPU, and the other ranks get the sharded one back.
        build: makes a model of the kind on a device. Every rank must call it, once training is over."""
        return model, True

    def channel(self) -> Channel:
        """A new way to exchange texts. Every rank must call it, in the same order as other calls of the kind."""
        return Channel()

    def expect_steps(self) -> None:
        """The first step is done: from here on ranks wait for each other no longer than a step takes."""

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank: what one rank is asked to do, all do at the same step."""
        return flag

    def barrier(self) -> None:
        """Wait for the other ranks."""

    def close(self) -> None:
        """Leave the group."""


class SingleProcess(Strategy):
    """One process, which holds everything."""


class DDP(Strategy):
    """Every rank holds the whole model."""

    strategy = "ddp"

    def __init__(self, device: torch.device, owns_group: bool) -> None:
        super().__init__(device, dist.get_rank(), dist.get_world_size())
        self._owns_group = owns_group

    def wrap(self, module: nn.Module, blocks: Sequence[nn.Module] = ()) -> nn.Module:
        if not any(p.requires_grad for p in module.parameters()):
            return module
        wrapped = DistributedDataParallel(
            module,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            forward_sync_buffers=False,  # functions of seed and shape; a part whose buffers learn sums over ranks itself
            find_unused_parameters=True,  # a part may leave some unused; and buckets then stay as they are, see above
            gradient_as_bucket_view=True,
        )
        wrapped.register_comm_hook(None, lambda state, bucket: _summed(bucket))
        return wrapped

    def compile(self, module: nn.Module, compiler: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[..., Any]:
        inner = module.module if isinstance(module, DistributedDataParallel) else module
        inner.forward = compiler(inner.forward)
        return module

    def accumulating(self, module: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
        return module.no_sync() if isinstance(module, DistributedDataParallel) and not last else contextlib.nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    def channel(self) -> Channel:
        return Channel(dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT))

    def expect_steps(self) -> None:
        dist.distributed_c10d._set_pg_timeout(STEP_TIMEOUT)

    def whole_model(self, model: nn.Module, build: Callable[[torch.device], nn.Module]) -> tuple[nn.Module, bool]:
        dist.distributed_c10d._set_pg_timeout(COLLECTIVE_TIMEOUT)  # the others wait while rank 0 saves it
        return model, True

    def any(self, flag: bool) -> bool:
        return bool(self.sum(torch.tensor([float(flag)], device=self.device)).item())

    def barrier(self) -> None:
        self.any(False)

    def close(self) -> None:
        """Leave the group; after an error the others may never answer, and the process ends anyway."""
        if self._owns_group and dist.is_initialized() and sys.exc_info()[0] is None:
            dist.destroy_process_group()


class FSDP(DDP):
    """Every rank holds a slice of every weight, and gathers a block's when it computes with it."""

    strategy = "fsdp"

    @property
    def build_device(self) -> torch.device:
        return torch.device("cpu" if self.is_main else "meta")

    def wrap(self, module: nn.Module, blocks: Sequence[nn.Module] = ()) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, fully_shard

        mesh = init_device_mesh(self.device.type, (self.world,))
        self._blocks = list(blocks)
        for block in self._blocks:
            if isinstance(block, BlockPart):
                block.return_context()
        for unit in (*self._blocks, module):
            replace_tensors(unit, self._from_main)
            fully_shard(unit, mesh=mesh, reshard_after_forward=unit is not module)
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.set_gradient_divide_factor(1.0)
                part.set_force_sum_reduction_for_comms(True)
        module.register_forward_hook(_reshard)
        return module

    def _from_main(self, name: str, tensor: Tensor) -> Tensor:
        """Rank 0's, whole, on this rank's device; what is sharded already stays."""
        if is_sharded(tensor):
            return tensor
        whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device) if tensor.is_meta else tensor.detach().to(self.device).contiguous()
        dist.broadcast(whole, 0)
        return like_parameter(whole, tensor)

    def compile(self, module: nn.Module, compiler: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[..., Any]:
        for block in self._blocks:
            block.forward = compiler(block.forward)  # type: ignore[method-assign]
        return module

    def accumulating(self, module: nn.Module, last: bool) -> contextlib.AbstractContextManager[object]:
        return contextlib.nullcontext()

    def grad_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Gradients are sharded without overlap: squares of local norms add up."""
        shards = [local_shard(g) for g in gradients]
        own = torch.linalg.vector_norm(torch.stack(torch._foreach_norm([g for g in shards if g.numel()] or [torch.zeros(1, device=self.device)])))
        return self.sum(own.square().reshape(1)).sqrt().reshape(())

    def whole_model(self, model: nn.Module, build: Callable[[torch.device], nn.Module]) -> tuple[nn.Module, bool]:
        super().whole_model(model, build)
        whole, everywhere = build(torch.device("meta")), True
        try:
            fill_with_memory(whole, self.device)
        except torch.OutOfMemoryError:
            everywhere = False
        if self.any(not everywhere):
            everywhere, whole = False, build(torch.device("meta"))
            if self.is_main:
                fill_with_memory(whole, torch.device("cpu"))
        targets = dict(whole.named_parameters()) | dict(whole.named_buffers())
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            full = tensor.detach().full_tensor() if is_sharded(tensor) else tensor.detach()  # type: ignore[attr-defined]
            if everywhere or self.is_main:
                targets[name].detach().copy_(full)
        return whole if everywhere or self.is_main else model, everywhere


def fill_with_memory(model: nn.Module, device: torch.device) -> None:
    """Put tensors on the device, without values, in the place of those of a model on meta; tied ones stay tied."""
    replace_tensors(model, lambda name, tensor: like_parameter(torch.empty(tensor.shape, dtype=tensor.dtype, device=device), tensor))


def like_parameter(tensor: Tensor, old: Tensor) -> Tensor:
    """`tensor` as what `old` is: a parameter, trained or not, or a buffer."""
    return nn.Parameter(tensor, old.requires_grad) if isinstance(old, nn.Parameter) else tensor


def make_parallel(section: Any, device: torch.device) -> Strategy:
    """What `section.parallel` and the environment say; `device.type` is that of every rank.

    Raises FeebError when the section asks for more processes than there are, or the environment for ranks that no
    strategy is set for.
    """
    config: ParallelConfig = section.parallel
    world = int(os.environ.get("WORLD_SIZE", 1))
    if config.strategy == "none":
        if world > 1:
            raise FeebError(f"{world} processes were started for one run; set parallel: {{strategy: ddp}} or fsdp, or start one")
        return SingleProcess(device)
    if world == 1:
        if config.ranks > 1:
            raise FeebError(
                f"parallel.ranks: {config.ranks} processes are wanted, and this one is alone: leave out --in-process (only stage pretrain has ranks)"
            )
        return SingleProcess(device)
    if section.batch_size % world:
        raise FeebError(f"batch_size: {section.batch_size} sequences do not divide over {world} ranks")
    device = local_device(device)
    owns = not dist.is_initialized()
    if owns:
        join(device)
    return (FSDP if config.strategy == "fsdp" else DDP)(device, owns)


def local_device(device: torch.device) -> torch.device:
    """This rank's GPU among those that the process may see, or the CPU. Raises FeebError when there are fewer GPUs than ranks.

    A process that sees one GPU, and that another program started, has that one: Slurm gives each task its own (--gpus-per-task).
    """
    if device.type != "cuda":
        return device
    local = int(os.environ.get("LOCAL_RANK", 0))
    if torch.cuda.device_count() == 1 and RENDEZVOUS not in os.environ:
        local = 0
    if local >= torch.cuda.device_count():
        raise FeebError(f"parallel: {local + 1} or more ranks on this machine, and {torch.cuda.device_count()} GPUs; lower parallel.ranks")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def join(device: torch.device) -> None:
    """Meet the other ranks. Returns when all are there."""
    file = os.environ.get(RENDEZVOUS)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{file}" if file else "env://",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=COLLECTIVE_TIMEOUT,
        device_id=device if device.type == "cuda" else None,
    )


def _summed(bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda done: done.value()[0])  # type: ignore[union-attr]


def _reshard(module: Any, inputs: Any, output: Any) -> None:
    """The outermost weights stay gathered from forward to backward; where none follows, they must be let go."""
    if not torch.is_grad_enabled():
        module.reshard()
