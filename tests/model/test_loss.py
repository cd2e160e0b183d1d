"""The chunked loss is plain cross-entropy, and never holds all logits in fp32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from feebcore.model.loss import linear_cross_entropy
from feebcore.model.parts import LMHeadPart

B, T, C, V = 4, 16, 8, 37


def example() -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(C, V), torch.randn(B, T, C, requires_grad=True), torch.randint(V, (B, T)), torch.rand(B, T) < 0.7


@pytest.mark.parametrize("most_logits", [10**9, 5 * V, 1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_and_gradients_are_cross_entropys(most_logits: int, smoothing: float) -> None:
    head, hidden, targets, mask = example()
    found = linear_cross_entropy(head, hidden, targets.masked_fill(~mask, -100), mask, vocab_size=V, label_smoothing=smoothing, most_logits=most_logits)
    exact = nn.Linear(C, V).double()
    exact.load_state_dict(head.state_dict())
    logits = exact(hidden.double())[mask]
    wanted = F.cross_entropy(logits, targets[mask], reduction="sum", label_smoothing=smoothing)
    assert found.loss_sum.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert found.nll.item() == pytest.approx(F.cross_entropy(logits, targets[mask], reduction="sum").item(), rel=1e-5)
    assert found.count.item() == mask.sum().item()
    for a, b in zip(torch.autograd.grad(found.loss_sum, [hidden, head.weight]), torch.autograd.grad(wanted, [hidden, exact.weight]), strict=True):
        assert torch.allclose(a, b.to(a.dtype), atol=1e-5)


def test_z_loss_is_the_squared_logsumexp() -> None:
    head, hidden, targets, _ = example()
    found = linear_cross_entropy(head, hidden, targets, vocab_size=V, z_loss=0.5)
    assert (found.loss_sum - found.nll).item() == pytest.approx(0.5 * head(hidden).logsumexp(-1).square().sum().item(), rel=1e-4)


class LargestFp32(TorchDispatchMode):
    """The largest fp32 tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor) and x.dtype == torch.float32:
                self.largest = max(self.largest, x.numel())
        return result


def test_all_logits_are_never_held_in_fp32() -> None:
    head, hidden, targets, mask = example()
    for limit, held in ((8 * V, 8 * V), (10**9, B * T * V)):
        with LargestFp32() as seen, torch.autocast("cpu", torch.bfloat16):
            linear_cross_entropy(head, hidden, targets, mask, vocab_size=V, most_logits=limit).loss_sum.backward()
        assert seen.largest == max(held, B * T * C)


def test_nothing_counts_gives_zero() -> None:
    head, hidden, targets, _ = example()
    found = linear_cross_entropy(head, hidden, targets, torch.zeros(B, T, dtype=torch.bool), vocab_size=V)
    assert (found.loss_sum.item(), found.count.item()) == (0.0, 0.0)


def test_completion_only_wants_a_mask() -> None:
    from feebcore.model.build import build_model
    from feebcore.parts import resolve_part
    from feebcore.protocols import Batch

    model = build_model(resolve_part("architectures", {"name": "transformer", "num_layers": 1, "d_model": 8, "num_heads": 2}), V, T)
    with pytest.raises(ValueError, match="no mask"):
        resolve_part("objectives", "completion_only").build()(model, Batch(torch.zeros(1, T, dtype=torch.int64), torch.zeros(1, T, dtype=torch.int64)))


@pytest.mark.parametrize("divisor", [1024.0, 2304.0])
def test_a_factor_on_the_loss_does_not_bias_gradients_in_bf16(divisor: float) -> None:
    """1 / 2304 is 0.24 % off in bf16: multiplied in bf16, every gradient would be."""
    torch.manual_seed(0)
    head = nn.Linear(32, 64, bias=False)
    hidden, targets = torch.randn(4, 16, 32), torch.randint(64, (4, 16))
    exact = linear_cross_entropy_in(torch.float64, head, hidden, targets) / divisor
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_cross_entropy(PlainHead(head.weight), hidden, targets, vocab_size=64)
    (found.loss_sum / divisor).backward()
    assert head.weight.grad is not None
    scale = float((head.weight.grad.double() * exact).sum() / (exact * exact).sum())
    assert scale == pytest.approx(1.0, abs=1e-3)


class PlainHead(LMHeadPart):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    @property
    def plain_weight(self) -> Tensor:
        return self.weight

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.weight)


def linear_cross_entropy_in(dtype: torch.dtype, head: nn.Linear, hidden: Tensor, targets: Tensor) -> Tensor:
    """The gradient of the summed loss by the head's weight, plainly."""
    weight = head.weight.detach().to(dtype).requires_grad_()
    loss = F.cross_entropy((hidden.to(dtype) @ weight.T).flatten(0, 1), targets.flatten(), reduction="sum")
    return torch.autograd.grad(loss, weight)[0]
