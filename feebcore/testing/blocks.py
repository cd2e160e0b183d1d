"""What block parts promise in addition to what every architecture does (models.py): that tokens are mixed at all, and by averaging; that
only distances count where positions are relative; that what is added to the stream is linear in the last matrix; that a
router routes; and that a part which bears the name of a known one computes what that one does.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from feebcore.model.build import build_model
from feebcore.model.parts import FeedforwardPart, ResidualLinear
from feebcore.model.position import Position
from feebcore.model.transformer import Transformer
from feebcore.parts import resolve_part
from feebcore.protocols import Batch
from feebcore.registry import BUILTIN
from feebcore.testing.framework import Candidate, check, require, skip
from feebcore.testing.models import BLOCK_KEYS, LENGTH, ROWS, SIZES, VOCAB, enliven, require_close, small_model, some_tokens
from feebcore.testing.references import REFERENCES
from feebcore.train.probing import find_places


@check(
    "attentions",
    "architectures",
    meaning="No information flows from earlier tokens; the model is a bigram model. Look for attention over heads or channels instead of positions.",
)
@torch.no_grad()
def attends_to_past(subject: Candidate) -> None:
    model, tokens = small_model(subject), some_tokens()
    changed = tokens.clone()
    changed[:, 3] = (changed[:, 3] + 7) % VOCAB
    moved = (model(changed).hidden - model(tokens).hidden)[:, 4].abs().amax(-1)
    require((moved > 1e-4).all(), "another token at position 3 changes nothing at position 4")


@check(
    "attentions",
    meaning="The output is not a weighted mean of the values; look for a softmax over the wrong axis or a mask applied after the softmax.",
)
@torch.no_grad()
def attention_weights_sum_to_one(subject: Candidate) -> None:
    part = resolve_part("architectures", {"name": "transformer", **SIZES, "num_layers": 2, "attention": subject.part, "position": "none"}, subject.registry)
    model = build_model(part, VOCAB, LENGTH, seed=1)
    enliven(model)
    hidden = model(some_tokens(ROWS, 1).expand(ROWS, LENGTH)).hidden
    require_close(hidden, hidden[:, :1].expand_as(hidden), "positions of a row that repeats one token, without position encoding")


@check(
    "attentions",
    "positions",
    meaning="Shifting all positions changes the result, though they are relative; look for queries rotated without keys, values rotated too, or wrong pairs.",
)
@torch.no_grad()
def relative_positions_shift_invariant(subject: Candidate) -> None:
    model, tokens = small_model(subject), some_tokens(ROWS, 7)
    if type(model.position).add is not Position.add:
        skip("its positions are absolute")
    positions = torch.arange(7).expand(ROWS, -1)
    require_close(
        model(tokens, positions=positions + LENGTH - 7).hidden, model(tokens, positions=positions).hidden, "the same tokens five positions later", 1e-4
    )


@check(
    "attentions",
    "feedforwards",
    meaning="The sublayer output is not linear in its output projection (ResidualLinear), so the initialization cannot scale it; look for a norm after it.",
)
@torch.no_grad()
def output_projection_is_last(subject: Candidate) -> None:
    model, tokens = small_model(subject, num_layers=1), some_tokens()
    assert isinstance(model, Transformer)
    places = find_places(model)
    parts = [model.stack.get_submodule(name) for name in (places.attention if subject.kind == "attentions" else places.feedforward)]
    maps = [m for part in parts for m in part.modules() if isinstance(m, ResidualLinear)]
    if not maps:
        skip("it has no output projection of class ResidualLinear")
    seen: list[Tensor] = []
    handles = [part.register_forward_hook(lambda module, inputs, result: seen.append(result.clone())) for part in parts]
    weights = [(p, p.clone()) for m in maps for p in m.parameters()]
    for factor in (0.0, 1.0, 2.0):
        for parameter, whole in weights:
            parameter.copy_(factor * whole)
        model(tokens)
    for handle in handles:
        handle.remove()
    count = len(seen) // 3
    for none, once, twice in zip(seen[:count], seen[count : 2 * count], seen[2 * count :], strict=True):
        require((once - none).abs().max() > 0, "ResidualLinear is not used in what the part returns")
        require_close(twice - once, once - none, "the change from adding the output projection a second time vs. once")


@check("norms", meaning="The norm computes in bf16, so sums and differences of large values lose their digits; raise to fp32 inside, cast back at the end.")
@torch.no_grad()
def computes_in_fp32(subject: Candidate) -> None:
    norm = subject.part.build(d_model=64)
    x = (20 + torch.randn(256, 64, generator=torch.Generator().manual_seed(4))).bfloat16()
    half, full = norm(x).float(), norm(x.float())
    error = ((half - full).square().mean() / full.square().mean()).sqrt().item()
    require(error < 2.2e-3, f"relative error {error:.2g} on bf16 input; rounding the result alone makes 1.7e-3")


@check("feedforwards", meaning="Router collapse: all tokens go to the same experts; look for a constant or detached router output.")
def routing_is_not_collapsed(subject: Candidate) -> None:
    model = small_model(subject, num_layers=1)
    routed = [m for m in model.modules() if isinstance(m, FeedforwardPart) and m.num_experts]
    if not routed:
        skip("it has no experts")
    x_BTC = torch.randn(8, LENGTH, SIZES["d_model"], generator=torch.Generator().manual_seed(6))
    for module in routed:
        share_E = torch.as_tensor(module.expert_load(x_BTC)["share"])
        require(abs(float(share_E.sum()) - 1) < 1e-5, f"fractions of the choices sum to {float(share_E.sum()):.3f}, not to 1")
        used = int((share_E > 0).sum())
        require(used > len(share_E) // 2, f"{used} of {len(share_E)} experts get any of {8 * LENGTH} random tokens")


def _mtp_logits(model: Transformer, stream_BT: Tensor) -> list[Tensor]:
    """Logits [B,T,V] of each MTP output of the model's head, on a stream of T + 1 tokens."""
    batch = Batch(stream_BT[:, :-1], stream_BT[:, 1:])
    return [head(hidden) for hidden, head in model.lm_head.mtp_outputs(model, batch, model(batch.tokens))]


@check("lm_heads", quick=True, meaning="An MTP head reads the token that it predicts, so its loss is too low; check which targets are its inputs.")
@torch.no_grad()
def mtp_does_not_leak(subject: Candidate) -> None:
    model, stream = small_model(subject), some_tokens()
    if not model.lm_head.num_mtp:
        skip("it has no MTP outputs")
    before = _mtp_logits(model, stream)
    for place in (3, LENGTH - 2):
        changed = stream.clone()
        changed[:, place:] = (changed[:, place:] + 7) % VOCAB
        for k, logits in enumerate(_mtp_logits(model, changed), start=1):
            known = max(0, place - k)  # position t predicts place t + k + 1 of the stream and may know those up to t + k
            require_close(logits[:, :known], before[k - 1][:, :known], f"changing tokens >= {place} altered prediction {k} of tokens <= {place}")


@check("lm_heads", meaning="A parameter of an MTP head gets no gradient from its own predictions; look for a detach.")
def mtp_parameters_get_gradients(subject: Candidate) -> None:
    model, stream = small_model(subject), torch.arange(LENGTH * 8).view(8, LENGTH) % VOCAB
    if not model.lm_head.num_mtp:
        skip("it has no MTP outputs")
    further = _mtp_logits(model, stream)
    loss = sum((F.cross_entropy(x[:, : -k or None].flatten(0, 1), stream[:, k + 1 :].flatten()) for k, x in enumerate(further, start=1)), torch.zeros(()))
    loss.backward()
    dead = [name for name, p in model.lm_head.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    require(not dead, f"no gradient in head parameters {', '.join(dead[:5])}")


@check("lm_heads", quick=True, meaning="The training FLOPs of MTP outputs differ from `mtp_flops`, so comparisons at matched FLOPs are wrong.")
@torch.no_grad()
def mtp_flops_are_measured(subject: Candidate) -> None:
    model, stream = small_model(subject), some_tokens(1, LENGTH + 1)
    if not model.lm_head.num_mtp:
        skip("it has no MTP outputs")
    batch = Batch(stream[:, :-1], stream[:, 1:])
    output = model(batch.tokens)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for hidden, head in model.lm_head.mtp_outputs(model, batch, output):
            head(hidden)
    declared, measured = sum(model.lm_head.mtp_flops(model, LENGTH)), counter.get_total_flops()
    require(declared == measured, f"declares {declared:.0f} FLOPs per sequence, FlopCounterMode counts {measured}")


@check(
    "stacks",
    quick=True,
    meaning="Objectives on every layer count on another number of layers than they get; set `num_streams` to how many streams are returned.",
)
@torch.no_grad()
def streams_are_counted(subject: Candidate) -> None:
    model = small_model(subject)
    returned, declared = len(model(some_tokens(), want_layers=True).layers), model.stack.num_streams
    require(returned == declared, f"returns {returned} streams, num_streams is {declared}")


@check(
    *BLOCK_KEYS,
    meaning="The part has the name of a known one but does not match its NumPy reference: check the scale (1/sqrt(head_dim)) and the rotary pairing and direction.",
)
@torch.no_grad()
def matches_reference(subject: Candidate) -> None:
    reference = REFERENCES.get((subject.kind, subject.spec.name)) if subject.spec.distribution in ("", BUILTIN) else None
    if reference is None:
        skip("feeb has no NumPy reference of this part; test it against your own")
    reference(subject.part)
