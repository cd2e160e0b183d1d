"""Feedforwards against plain formulas: dense, memories of many small values, structured matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from feebcore.model.context import ForwardContext
from feebcore.model.position import Position
from feebcore.parts import resolve_part
from feebcore.testing import candidate
from feebcore.testing.framework import iterate


def made(name: str, d_model: int = 32, seed: int = 0, **options: Any) -> Any:
    """The part, with every weight drawn: unit gain for matrices, off their neutral values for the rest."""
    torch.manual_seed(seed)
    module = resolve_part("feedforwards", {"name": name, **options}).build(d_model=d_model)
    module.register_forward_pre_hook(lambda m, inputs: (*inputs, ForwardContext(Position())) if len(inputs) == 1 else None)  # tests call it with x alone
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(noise / parameter.shape[-1] ** 0.5 if parameter.ndim >= 2 else parameter + 0.2 * noise)
    return module


SHAPES = ("causality", "batch_invariance", "cache_parity", "left_padding_parity", "gradient_everywhere", "overfits_one_batch", "counts_are_measured")


def broken(name: str, **options: Any) -> list[str]:
    """What it breaks of the contract's checks that need no compiler and no bf16."""
    subject = candidate("feedforwards", resolve_part("feedforwards", {"name": name, **options}))
    return [str(r) for r in iterate(subject, SHAPES) if not r.passed]


# --- dense ------------------------------------------------------------------------------------------------------


def test_geglu_and_affine_gelu_are_their_equations() -> None:
    x = torch.randn(2, 5, 32)
    geglu = made("geglu", intermediate_size=64)
    gate, value = geglu.hidden.weight[:64], geglu.hidden.weight[64:]
    assert torch.allclose(geglu(x), (F.gelu(x @ gate.T, approximate="tanh") * (x @ value.T)) @ geglu.out.weight.T, atol=1e-5)
    affine = made("affine_gelu", intermediate_size=64, bias=True)
    inner = affine.activation.scale * (x @ affine.hidden.weight.T + affine.hidden.bias) + affine.activation.shift
    assert torch.allclose(affine(x), F.gelu(inner, approximate="tanh") @ affine.out.weight.T + affine.out.bias, atol=1e-5)


def test_affine_gelu_starts_as_gelu() -> None:
    parts = [resolve_part("feedforwards", name).build(d_model=32) for name in ("gelu", "affine_gelu")]
    parts[1].load_state_dict(parts[0].state_dict(), strict=False)
    x = torch.randn(2, 5, 32)
    context = ForwardContext(Position())
    assert torch.equal(parts[0](x, context), parts[1](x, context))


@pytest.mark.parametrize("name", ["gelu", "affine_gelu", "swiglu"])
def test_norm_before_out_makes_the_last_matrix_blind_to_the_scale_of_what_it_reads(name: str) -> None:
    module, x, seen = made(name, norm_before_out=True), torch.randn(2, 5, 32), []
    module.out.register_forward_pre_hook(lambda m, inputs: seen.append(inputs[0]))
    module(x)
    read = (seen[0] / module.norm.gain).square().mean(-1)
    assert torch.allclose(read, torch.ones_like(read), atol=1e-3)


def test_dense_options_keep_the_contract() -> None:
    assert not broken("swiglu", norm_before_out=True)
    assert not broken("affine_gelu", norm_before_out=True, bias=True)


# --- memories ---------------------------------------------------------------------------------------------------

SMALL = {"num_keys": 6, "heads": 3, "top_k": 4, "key_dim": 8}


def best_of_all_keys(module: Any, x_C: torch.Tensor, cores: int = 1) -> list[list[tuple[int, torch.Tensor]]]:
    """For each head the best (number, scores [M]) of all num_keys^2 keys, by trying every one."""
    keys, found = module.keys, []
    for head, query in enumerate((keys.query.weight @ x_C).view(keys.heads, -1)):
        query = query / (query.square().mean() + 1e-6).sqrt()
        halves = query.chunk(2)
        a, b = ((k @ half).view(-1, cores) for k, half in zip(keys.keys[head], halves, strict=True))
        every = [(i * keys.num_keys + j, a[i] + b[j]) for i in range(keys.num_keys) for j in range(keys.num_keys)]
        found.append(sorted(every, key=lambda one: -one[1].sum().item())[: keys.top_k])
    return found


def test_product_key_memory_reads_the_best_of_all_values() -> None:
    module, x = made("product_key_memory", **SMALL), torch.randn(2, 3, 32)
    for x_C, y_C in zip(x.flatten(0, 1), module(x).flatten(0, 1), strict=True):
        wanted = torch.zeros(32)
        for found in best_of_all_keys(module, x_C):
            for weight, (number, _) in zip(torch.cat([s for _, s in found]).softmax(0), found, strict=True):
                wanted = wanted + weight * module.values.weight[number]
        assert torch.allclose(y_C, wanted, atol=1e-5)


def test_peer_asks_the_best_of_all_experts() -> None:
    module, x = made("peer", **SMALL), torch.randn(2, 3, 32)
    for x_C, y_C in zip(x.flatten(0, 1), module(x).flatten(0, 1), strict=True):
        wanted = torch.zeros(32)
        for found in best_of_all_keys(module, x_C):
            for gate, (number, _) in zip(torch.cat([s for _, s in found]).softmax(0), found, strict=True):
                wanted = wanted + gate * F.gelu(module.up.weight[number] @ x_C, approximate="tanh") * module.down.weight[number]
        assert torch.allclose(y_C, wanted, atol=1e-5)


def test_ultramem_weighs_segments_with_their_own_scores_and_projects_by_block() -> None:
    module, x = made("ultramem", **SMALL, cores=2, expansion=4, value_dim=10), torch.randn(2, 3, 32)
    projections = module.out.weight.view(32, 4, 10)
    assert module.values.weight.shape == (9, 10)
    for x_C, y_C in zip(x.flatten(0, 1), module(x).flatten(0, 1), strict=True):
        wanted = torch.zeros(32)
        for found in best_of_all_keys(module, x_C, cores=2):
            for number, scores in found:
                wanted = wanted + projections[:, number // 9] @ (module.values.weight[number % 9] * scores.repeat_interleave(5))
        assert torch.allclose(y_C, wanted, atol=1e-4)


def test_values_of_memories_have_the_role_of_embeddings() -> None:
    from feebcore.model.build import build_model
    from feebcore.model.groups import param_groups

    part = {"name": "peer", **SMALL}
    model = build_model(resolve_part("architectures", {"name": "transformer", "num_layers": 1, "d_model": 32, "num_heads": 4, "feedforward": part}), 61, 12)
    names = {group.role: group.names for group in param_groups(model)}
    assert [n.rpartition("feedforward.")[2] for n in names["embedding"] if "feedforward" in n] == ["up.weight", "down.weight"]
    assert any(n.endswith("keys.keys") for n in names["matrix"])


def test_a_memory_costs_the_same_however_many_values_it_has() -> None:
    from feebcore.model.counting import count_flops

    wide, narrow = (made("product_key_memory", **SMALL | {"num_keys": n}) for n in (60, 6))
    assert wide.values.weight.numel() == 100 * narrow.values.weight.numel()
    assert count_flops(wide, 12)[0] - count_flops(narrow, 12)[0] == 2 * 12 * 3 * (60 - 6) * 8  # the sub-keys alone


# --- structured matrices ----------------------------------------------------------------------------------------


def test_monarch_is_its_dense_matrix() -> None:
    from feeb_models.feedforwards.structured_matrices.structured_matrices import Monarch

    torch.manual_seed(0)
    for d_in, d_out in ((16, 32), (32, 16), (16, 16)):
        monarch = Monarch(d_in, d_out, 4, residual=False)
        monarch.init_weights(0.02, 0.02)
        middle = min(d_in, d_out)

        def shuffled(width: int) -> torch.Tensor:
            """P: element (i, j) of a table of 4 rows goes to (j, i)."""
            permutation = torch.zeros(width, width)
            for i in range(4):
                for j in range(width // 4):
                    permutation[j * 4 + i, i * (width // 4) + j] = 1.0
            return permutation

        dense = shuffled(d_out) @ torch.block_diag(*monarch.left) @ shuffled(middle) @ torch.block_diag(*monarch.right)
        x = torch.randn(3, 5, d_in)
        assert torch.allclose(monarch(x), x @ dense.T, atol=1e-6)
        assert (dense != 0).all(), "every output sees every input"


@pytest.mark.parametrize("radix", [2, 4])
def test_butterfly_is_the_product_of_its_factors_and_mixes_everything(radix: int) -> None:
    from feeb_models.feedforwards.structured_matrices.structured_matrices import Butterfly

    torch.manual_seed(0)
    butterfly, n = Butterfly(16, radix, 2, residual=False), 16
    butterfly.init_weights(0.02, 0.02)
    dense = []
    for copy in range(2):
        product = torch.eye(n)
        for level in range(butterfly.levels):
            stride, factor = radix**level, torch.zeros(n, n)
            for block in range(n // radix):
                first = block // stride * stride * radix + block % stride
                members = [first + digit * stride for digit in range(radix)]
                for i in range(radix):
                    for j in range(radix):
                        factor[members[i], members[j]] = butterfly.factors[level, copy, block, i, j]
            product = factor @ product
        dense.append(product)
        assert (product != 0).all(), "every output sees every input"
    x = torch.randn(3, 5, 2, n)
    assert torch.allclose(butterfly(x), torch.einsum("btkc,kdc->btkd", x, torch.stack(dense)), atol=1e-6)


def test_a_butterfly_can_be_the_hadamard_transform() -> None:
    from feeb_models.feedforwards.structured_matrices.structured_matrices import Butterfly

    butterfly = Butterfly(8, 2, 1, residual=False)
    with torch.no_grad():
        butterfly.factors.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    x = torch.randn(8)
    wanted = [sum(x[j] * (-1) ** (i & j).bit_count() for j in range(8)) for i in range(8)]
    assert torch.allclose(butterfly(x.view(1, 1, 8))[0, 0], torch.stack(wanted), atol=1e-5)


@pytest.mark.parametrize("name", ["monarch", "butterfly"])
def test_structured_matrices_start_with_the_variance_of_dense_ones(name: str) -> None:
    torch.manual_seed(0)
    module = resolve_part("feedforwards", name).build(d_model=256)
    for part in (module.hidden, module.out):
        part.init_weights(0.02, 0.01)
    x = torch.randn(200, 4, 256) if name == "butterfly" else torch.randn(200, 256)
    assert module.hidden(x).std().item() == pytest.approx(0.02 * 16, rel=0.15)
    y = torch.randn(200, 4, 256) if name == "butterfly" else torch.randn(200, 1024)
    out = module.out(y).sum(-2) if name == "butterfly" else module.out(y)
    assert out.std().item() == pytest.approx(0.01 * 32, rel=0.15)


@pytest.mark.parametrize(
    ("name", "options", "d_model", "message"),
    [
        ("product_key_memory", {"top_k": 65}, 32, "set top_k to 64 or less"),
        ("peer", {"key_dim": 7}, 32, "set it to 8"),
        ("ultramem", {"expansion": 5}, 32, "divisor of num_keys"),
        ("ultramem", {"cores": 3}, 32, "set value_dim to 18"),
        ("monarch", {"blocks": 5}, 32, "set blocks to 4"),
        ("monarch", {"blocks": 8}, 32, "set blocks to 5 or less"),
        ("butterfly", {}, 48, "set d_model to 32 or 64"),
    ],
)
def test_sizes_that_cannot_fit_are_refused_with_a_way_out(name: str, options: dict[str, Any], d_model: int, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        resolve_part("architectures", {"name": "transformer", "d_model": d_model, "num_heads": 4, "feedforward": {"name": name, **options}})


@pytest.mark.parametrize(
    ("name", "options"), [("butterfly", {"radix": 32, "copies": 2}), ("ultramem", {"num_keys": 4, "top_k": 4, "heads": 4, "cores": 1, "expansion": 1})]
)
def test_other_sizes_keep_the_contract(name: str, options: dict[str, Any]) -> None:
    assert not broken(name, **options)
