import pytest
import torch
from torch import nn
from torch.nn import functional as F

from feebcore.model import fused_loss
from feebcore.model.fused_loss import fused_cross_entropy
from feebcore.model.loss import linear_cross_entropy
from feebcore.model.parts import LMHeadPart

N, C, V = 37, 12, 50


class Head(nn.Linear, LMHeadPart):
    """A head that may be multiplied by the loss."""

    @property
    def plain_weight(self) -> torch.Tensor:
        return self.weight


def example() -> tuple[torch.Tensor, Head, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    head = Head(C, V, bias=False)
    head.weight.data = 2 * torch.randn(V, C, generator=generator)
    hidden = 3 * torch.randn(N, C, generator=generator)
    return hidden.requires_grad_(), head, torch.randint(V, (N,), generator=generator), torch.rand(N, generator=generator) < 0.6


def reference(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
    """Loss and gradients in double precision, by autograd."""
    hidden, weight = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    nats = F.cross_entropy(hidden @ weight.t(), targets, reduction="none")
    loss = nats.sum() if mask is None else nats[mask].sum()
    return loss.detach(), *torch.autograd.grad(loss * 0.37, (hidden, weight))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("rows", [5, 1000])
@pytest.mark.parametrize("compiled", [False, True])
def test_loss_and_gradients_are_those_of_autograd_whatever_the_chunk(masked: bool, rows: int, compiled: bool) -> None:
    hidden, head, targets, mask = example()
    function = torch.compile(fused_cross_entropy, backend="aot_eager", fullgraph=True) if compiled else fused_cross_entropy
    loss = function(hidden, head.weight, targets, mask.float() if masked else None, rows)
    (0.37 * loss).backward()
    expected = reference(hidden, head.weight, targets, mask if masked else None)
    for found, right in zip((loss.detach(), hidden.grad, head.weight.grad), expected, strict=True):
        torch.testing.assert_close(found.double(), right, rtol=2e-5, atol=2e-5)


def test_a_padded_vocabulary_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where 50 tokens are multiplied as 64."""
    results = []
    for alignment in (1, 64):
        monkeypatch.setitem(fused_loss.ALIGNMENT, "cpu", alignment)
        hidden, head, targets, mask = example()
        loss = fused_cross_entropy(hidden, head.weight, targets, mask.float(), 5)
        loss.backward()
        results.append((loss.detach(), hidden.grad, head.weight.grad))
    for plain, padded in zip(*results, strict=True):
        torch.testing.assert_close(padded, plain, rtol=1e-5, atol=1e-5)


def test_certain_and_hopeless_predictions_lose_no_precision() -> None:
    hidden, weight = torch.tensor([[200.0], [-200.0]], requires_grad=True), torch.tensor([[1.0], [0.0], [-1.0]])
    loss = fused_cross_entropy(hidden, weight, torch.tensor([0, 0]), None, rows=1)
    loss.backward()
    assert loss.item() == pytest.approx(400.0)
    torch.testing.assert_close(hidden.grad, torch.tensor([[0.0], [-2.0]]))


def test_in_bf16_it_stays_close_to_fp32() -> None:
    hidden, head, targets, mask = example()
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused_cross_entropy(hidden, head.weight, targets, mask.float(), rows=8)
    loss.backward()
    right, by_hidden, by_weight = reference(hidden, head.weight, targets, mask)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(right.item(), rel=0.01)
    for found, expected in ((hidden.grad, by_hidden / 0.37), (head.weight.grad, by_weight / 0.37)):
        assert (found.double() - expected).norm() < 0.02 * expected.norm()


def test_a_second_derivative_is_an_error() -> None:
    hidden, head, targets, _ = example()
    loss = fused_cross_entropy(hidden, head.weight, targets, None, rows=8)
    (first,) = torch.autograd.grad(loss.square(), hidden, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first.sum(), hidden)


@pytest.mark.parametrize("options", [{}, {"z_loss": 1e-3}, {"label_smoothing": 0.1}])
def test_plain_and_other_heads_give_one_loss(options: dict[str, float]) -> None:
    hidden, head, targets, mask = example()
    other = nn.Linear(C, V, bias=False)
    other.weight = head.weight
    results = []
    for module in (head, other):
        found = linear_cross_entropy(module, hidden[None], targets[None], mask[None], vocab_size=V, **options)
        results.append((found.loss_sum, found.nll, found.count, *torch.autograd.grad(found.loss_sum, (hidden, head.weight))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_without_gradients_none_are_made() -> None:
    hidden, head, targets, _ = example()
    with torch.no_grad():
        loss = fused_cross_entropy(hidden, head.weight, targets, None, rows=8)
    assert float(loss) == pytest.approx(float(reference(hidden, head.weight, targets, None)[0]), rel=1e-5)
    assert not loss.requires_grad
