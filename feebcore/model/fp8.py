"""Matrix products of linear layers in fp8 while a model is trained: torchao's Float8Linear with dynamic scaling (arXiv:2209.05433).

Weights stay fp32 and are the model's own: a layer is exchanged for one that multiplies the same parameter in fp8, and put back
afterwards, so that what is scored and saved is the model itself. Not run on a GPU yet; docs/performance.md lists what to check first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from feebcore.errors import FeebError


def convert_to_fp8(model: nn.Module, **options: Any) -> Callable[[], None]:
    """Exchange the linear layers of `model`, in place; returns the function that puts them back. options: of torchao's Float8LinearConfig.

    Raises FeebError without CUDA of compute capability 8.9, without torchao, and for a linear layer with a forward of its own.
    """
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9):
        raise FeebError("precision: fp8 needs a CUDA device of compute capability 8.9 or more (Ada, Hopper or newer); use precision: bf16")
    return exchange(model, **options)


def exchange(model: nn.Module, **options: Any) -> Callable[[], None]:
    """`convert_to_fp8` on any device; with `emulate=True` the products are made without the hardware."""
    layers = fp8_layers(model)
    try:
        from torchao.float8 import Float8LinearConfig
        from torchao.float8.float8_linear import Float8Linear
    except ImportError as error:
        raise FeebError("precision: fp8 needs the package torchao; pip install 'feeb[fp8]', or use precision: bf16") from error
    config = Float8LinearConfig(**options)
    for name, layer in layers.items():
        model.set_submodule(name, Float8Linear.from_float(layer, config).train(layer.training))

    def put_back() -> None:
        for name, layer in layers.items():
            layer.train(model.get_submodule(name).training)
            model.set_submodule(name, layer)

    return put_back


def fp8_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers to exchange, by name: those with sizes divisible by 16, which is what the hardware multiplies, outside the head,
    whose logits keep their format. Raises FeebError that names a layer which does not multiply as nn.Linear does."""
    layers, others = {}, []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or name.partition(".")[0] == "lm_head":
            continue
        if type(module).forward is not nn.Linear.forward or hasattr(module, "parametrizations"):
            others.append(f"{name} ({type(module).__name__})")
        elif module.in_features % 16 == 0 and module.out_features % 16 == 0:
            layers[name] = module
    if others:
        raise FeebError(f"precision: fp8 knows plain linear layers only, and {len(others)} of this model are none, such as {others[0]}; use precision: bf16")
    return layers
