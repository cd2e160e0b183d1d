"""What architectures and block parts promise. A block part is checked inside a small transformer.

Models are tiny (2 layers, width 32, 4 heads, 61 tokens, rows of 12) and, but for the check of the first loss, vivid:
their weights are drawn so large that attention is far from uniform and every leak is visible.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from feebcore.model.build import build_model
from feebcore.model.groups import param_groups
from feebcore.model.io import load_model, save_model
from feebcore.model.transformer import Transformer
from feebcore.parts import Part, resolve_part
from feebcore.testing.framework import Candidate, check, example_options, require, skip

BLOCK_KEYS = {
    "attentions": "attention",
    "feedforwards": "feedforward",
    "norms": "norm",
    "positions": "position",
    "blocks": "block",
    "stacks": "stack",
    "embeddings": "embedding",
    "lm_heads": "lm_head",
    "initializations": "initialization",
}
KINDS = ("architectures", *BLOCK_KEYS)
SIZES = {"d_model": 32, "num_heads": 4}
VOCAB, ROWS, LENGTH = 61, 3, 12
CLOSE = 2e-5  # fp32, on hidden states of unit scale


def architecture_of(subject: Candidate, num_layers: int = 2) -> Part:
    """The architecture itself at a small size, or a small transformer with the block part in its place."""
    sizes = SIZES | {"num_layers": num_layers}
    if subject.kind in BLOCK_KEYS:
        return resolve_part("architectures", {"name": "transformer", **sizes, BLOCK_KEYS[subject.kind]: subject.part}, subject.registry)
    if example_options(subject.spec):
        return subject.part
    small = {k: v for k, v in sizes.items() if k in subject.spec.config.model_fields}
    return resolve_part("architectures", {**subject.part.dump(), **small}, subject.registry)


def small_model(subject: Candidate, vivid: bool = True, num_layers: int = 2, seed: int = 1) -> Any:
    model = build_model(architecture_of(subject, num_layers), VOCAB, LENGTH, seed=seed)
    if vivid:
        enliven(model)
    return model


@torch.no_grad()
def enliven(model: nn.Module) -> None:
    """Weights of unit gain, gains and biases off their neutral values: nothing is zero, symmetric or negligible."""
    random = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=random)
        if parameter.ndim >= 2:
            parameter.copy_(noise / math.sqrt(parameter.shape[-1]))
        else:
            parameter.add_(0.2 * noise)


def some_tokens(rows: int = ROWS, length: int = LENGTH, seed: int = 3) -> Tensor:
    return torch.randint(VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def loss_of(model: Any, tokens_BT: Tensor) -> Tensor:
    """Mean next-token loss, written plainly."""
    logits = model.lm_head(model(tokens_BT[:, :-1]).hidden).float()
    return F.cross_entropy(logits.flatten(0, 1), tokens_BT[:, 1:].flatten())


def require_close(result: Tensor, expected: Tensor, what: str, tolerance: float = CLOSE) -> None:
    require(result.shape == expected.shape, f"{what}: shape {tuple(result.shape)}, not {tuple(expected.shape)}")
    if not result.numel():
        return
    difference = (result - expected).abs().max().item()
    require(difference <= tolerance * max(1.0, expected.abs().max().item()), f"{what}: max abs difference {difference:.2g}")


@contextlib.contextmanager
def restored_buffers(model: nn.Module) -> Iterator[None]:
    """Buffers that a training pass updates are afterwards as they were."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    yield
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(before[name])


@check(
    *KINDS, quick=True, meaning="A position sees later tokens, so training loss is too good to be true; look for a missing, transposed or shifted causal mask."
)
@torch.no_grad()
def causality(subject: Candidate) -> None:
    model, tokens = small_model(subject), some_tokens()
    before = model(tokens).hidden
    for t in (1, LENGTH // 2, LENGTH - 1):
        changed = tokens.clone()
        changed[:, t:] = (changed[:, t:] + 7) % VOCAB
        require_close(model(changed).hidden[:, :t], before[:, :t], f"changing tokens >= {t} altered outputs at positions < {t}")


@check(
    *KINDS,
    quick=True,
    meaning="The output for a sequence depends on the rest of the batch, so losses change with batch size; look for statistics or a softmax over the batch or head axis.",
)
@torch.no_grad()
def batch_invariance(subject: Candidate) -> None:
    model, tokens = small_model(subject), some_tokens()
    for mode in ("training", "evaluation"):
        model.train(mode == "training")
        together = model(tokens).hidden
        for row in range(ROWS):
            require_close(model(tokens[row : row + 1]).hidden, together[row : row + 1], f"row {row} alone and in a batch of {ROWS}, in {mode}")


@check(*KINDS, quick=True, meaning="Packed documents see each other; look for a mask or positions that ignore doc_ids.")
@torch.no_grad()
def document_isolation(subject: Candidate) -> None:
    model, tokens = small_model(subject), some_tokens()
    cuts = (0, 5, 6, LENGTH)
    doc_ids = torch.repeat_interleave(torch.arange(3), torch.tensor([5, 1, 6])).expand(ROWS, -1)
    packed = model(tokens, doc_ids=doc_ids).hidden
    for start, stop in itertools.pairwise(cuts):
        require_close(packed[:, start:stop], model(tokens[:, start:stop]).hidden, f"document at {start}..{stop} packed and alone")


@check(*KINDS, quick=True, meaning="Generation differs from training; look for positions that start again at 0, or an offset by one, when a cache is used.")
@torch.no_grad()
def cache_parity(subject: Candidate) -> None:
    model, tokens = small_model(subject), some_tokens()
    whole = model(tokens).hidden
    for steps in ((5, 1, 1, 3, 2), (1,) * LENGTH):
        cache, start, parts = model.new_cache(ROWS, LENGTH), 0, []
        for step in steps:
            parts.append(model(tokens[:, start : start + step], cache=cache).hidden)
            start += step
        require_close(torch.cat(parts, 1), whole, f"fed in pieces of {steps} through the cache")


@check(*KINDS, quick=True, meaning="Padding on the left changes the result; look for a mask that lets padding be attended, or positions that count it.")
@torch.no_grad()
def left_padding_parity(subject: Candidate) -> None:
    model, tokens = small_model(subject), some_tokens()
    lengths = (4, 7, 9)
    width = max(lengths)
    padded, doc_ids = torch.zeros(ROWS, width, dtype=torch.int64), torch.full((ROWS, width), -1)
    for row, length in enumerate(lengths):
        padded[row, width - length :], doc_ids[row, width - length :] = tokens[row, :length], 0
    cache = model.new_cache(ROWS, LENGTH)
    plain, cached = model(padded, doc_ids=doc_ids).hidden, model(padded, doc_ids=doc_ids, cache=cache).hidden
    steps = [model(tokens[torch.arange(ROWS), torch.tensor(lengths) + i][:, None], cache=cache).hidden for i in range(2)]
    for row, length in enumerate(lengths):
        expected = model(tokens[row : row + 1, : length + 2]).hidden[0]
        require_close(plain[row, width - length :], expected[:length], f"row of {length} tokens, {width - length} padding before it")
        require_close(cached[row, width - length :], expected[:length], f"the same through the cache, {width - length} padding")
        for i, step in enumerate(steps):
            require_close(step[row, 0], expected[length + i], f"token {i + 1} decoded after {width - length} padding")


@check(
    *KINDS,
    meaning="A freshly initialized model is far from a uniform guess, so the first steps are spent unlearning; look at the initialization or a head without a norm before it.",
)
@torch.no_grad()
def initial_loss(subject: Candidate) -> None:
    loss = loss_of(small_model(subject, vivid=False), some_tokens(8)).item()
    require(abs(loss - math.log(VOCAB)) < 0.25, f"first loss {loss:.3f}, ln V is {math.log(VOCAB):.3f}")


@check(
    *KINDS,
    quick=True,
    meaning="A parameter gets no gradient and never learns; look for a detach, an argmax without a straight-through, or a module that is not called.",
)
def gradient_everywhere(subject: Candidate) -> None:
    model = small_model(subject)
    loss_of(model, torch.arange(LENGTH * 8).view(8, LENGTH) % VOCAB).backward()
    largest = {n: 0.0 if p.grad is None else p.grad.abs().max().item() for n, p in model.named_parameters()}  # NaN if any is
    noise = 1e-7 * max(largest.values())  # what is left of a gradient that cancels
    dead = [n for n, size in largest.items() if not noise < size < math.inf]
    require(not dead, f"no finite gradient in {', '.join(dead[:5])}")
    grouped = sorted(n for g in param_groups(model) for n in g.names)
    require(grouped == sorted(n for n, _ in model.named_parameters()), "param_groups does not list every parameter once")


@check(*KINDS, meaning="The model cannot overfit one batch; look for a wrong axis, a saturated softmax or an update that never reaches the weights.")
def overfits_one_batch(subject: Candidate) -> None:
    losses = []
    for seed in (1, 2):  # few initial weights are so unlucky that 80 steps do not suffice
        model, tokens = small_model(subject, vivid=False, seed=seed), some_tokens(4)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
        for _ in range(80):
            value = loss_of(model, tokens)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            if value.item() < 0.15:
                return
        losses.append(f"{value.item():.2f}")
    require(False, f"losses {' and '.join(losses)} after 80 steps on one batch, from two initializations")


@check(
    *KINDS,
    quick=True,
    meaning="Declared counts are not the measured ones, so every compute comparison is off; see feebcore/model/counting.py for what to declare.",
)
@torch.no_grad()
def counts_are_measured(subject: Candidate) -> None:
    model = small_model(subject)
    counts, total = model.count(), sum(p.numel() for p in model.parameters())
    require(counts.total == total, f"declares {counts.total} parameters, has {total}")
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.lm_head(model(some_tokens(1)).hidden)
    declared, measured = counts.flops_per_token * LENGTH, counter.get_total_flops()
    require(declared == measured, f"declares {declared:.0f} FLOPs per sequence, FlopCounterMode counts {measured}")
    cache = model.new_cache(1, LENGTH)
    model(some_tokens(1), cache=cache)
    per_token = sum(x.numel() * 4 for part in (cache, *cache.others) for slot in part.slots for x in slot) / LENGTH
    require(counts.cache_bytes_per_token == per_token, f"declares {counts.cache_bytes_per_token} cache bytes per token, keeps {per_token:.0f}")
    fixed = sum(x.numel() * 4 for state in cache.states for x in state)
    require(counts.cache_bytes_fixed == fixed, f"declares {counts.cache_bytes_fixed} cache bytes per row, keeps {fixed}")


@check(
    *KINDS,
    meaning="Gradients differ with activation_checkpointing; look for state stored outside `context.shared`, or in-place changes.",
)
def recomputation_parity(subject: Candidate) -> None:
    model, tokens = small_model(subject), some_tokens()
    if not isinstance(model, Transformer):
        skip("it is not a Transformer, which activation checkpointing is for")
    gradients = []
    for recompute in (False, True):
        for block in model.stack.all_blocks():
            block.recompute = recompute
        torch.manual_seed(0)  # routers and dropout draw the same numbers
        with restored_buffers(model):
            gradients.append(torch.autograd.grad(loss_of(model, tokens), list(model.parameters()), allow_unused=True, materialize_grads=True))
    for name, kept, recomputed in zip(dict(model.named_parameters()), *gradients, strict=True):
        require_close(recomputed, kept, f"gradient of {name} with and without activation checkpointing")


@check(*KINDS, meaning="torch.compile changes the result or cannot follow the code; look for Python side effects, data-dependent branches or in-place tricks.")
def compile_parity(subject: Candidate) -> None:
    if subject.kind == "initializations":
        skip("weights are drawn before anything is compiled")
    model, tokens = small_model(subject, num_layers=1), some_tokens()  # one layer: tracing is what takes time
    eager = loss_of(model, tokens)
    expected = torch.autograd.grad(eager, list(model.parameters()))
    torch._dynamo.reset()
    compiled = torch.compile(loss_of, backend="aot_eager", fullgraph=True)(model, tokens)
    gradients = torch.autograd.grad(compiled, list(model.parameters()))
    require_close(compiled, eager, "loss compiled and eager")
    for name, a, b in zip(dict(model.named_parameters()), gradients, expected, strict=True):
        require_close(a, b, f"gradient of {name} compiled and eager")


@check(*KINDS, meaning="In bf16 the result drifts; look for a sum, norm or softmax that is not raised to fp32.")
@torch.no_grad()
def bf16_is_close(subject: Candidate) -> None:
    model, tokens = small_model(subject), some_tokens()
    expected = model(tokens).hidden
    with torch.autocast("cpu", torch.bfloat16):
        result = model(tokens).hidden.float()
    error = ((result - expected).square().mean() / expected.square().mean()).sqrt().item()
    require(error < 0.05, f"relative error {error:.3f} in bf16")


@check(
    *KINDS,
    quick=True,
    meaning="A model differs after saving and loading; look for state outside parameters and buffers, or weights tied only at initialization.",
)
@torch.no_grad()
def saves_and_loads(subject: Candidate) -> None:
    model, architecture = small_model(subject), architecture_of(subject)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "model", model, architecture)
        again = load_model(Path(folder) / "model", registry=subject.registry)
    loaded, saved = again(some_tokens()).hidden, model.eval()(some_tokens()).hidden
    require(torch.equal(loaded, saved), "hidden states differ after save and load")
    require(torch.equal(again.lm_head(loaded), model.lm_head(saved)), "logits differ after save and load")
    require(len(list(again.parameters())) == len(list(model.parameters())), "parameters that were shared are separate after load")


@check(*KINDS, quick=True, meaning="The same seed gives other weights, so a run cannot be repeated; look for random numbers drawn outside torch's generator.")
def built_from_the_seed_alone(subject: Candidate) -> None:
    architecture = architecture_of(subject)
    before = torch.random.get_rng_state()
    first = build_model(architecture, VOCAB, LENGTH, seed=5)
    require(torch.equal(before, torch.random.get_rng_state()), "building moved the caller's random state")
    torch.rand(3)
    second, other = build_model(architecture, VOCAB, LENGTH, seed=5), build_model(architecture, VOCAB, LENGTH, seed=6)
    same = lambda m: all(torch.equal(a, b) for a, b in zip(first.parameters(), m.parameters(), strict=True))  # noqa: E731
    require(same(second), "seed 5 twice gives different weights")
    require(not same(other), "seeds 5 and 6 give the same weights")


@check(
    "initializations",
    quick=True,
    meaning="Another part in one block changes the weights of others, so paired runs differ by more than that part; draw in the loop of `modules_to_draw`.",
)
def weights_depend_on_their_names(subject: Candidate) -> None:
    plain, other = (
        dict(
            build_model(resolve_part("architectures", {**architecture_of(subject).dump(), **parts}, subject.registry), VOCAB, LENGTH, seed=5).named_parameters()
        )
        for parts in ({}, {"attention": "none"})
    )
    shared = [name for name, weight in plain.items() if name in other and weight.shape == other[name].shape]
    moved = [name for name in shared if not torch.equal(plain[name], other[name])]
    require(not moved, f"without attention, {', '.join(moved[:3])} start with other weights")
