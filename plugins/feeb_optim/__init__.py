"""Built-in optimizers, schedules and rate rules: names and options; factories load torch."""

from __future__ import annotations

from collections.abc import Iterable

import feebcore as feeb
from feeb_optim import configs
from feeb_optim.configs import (
    AdafactorConfig,
    AdamConfig,
    AdamWConfig,
    AdEMAMixConfig,
    ConstantConfig,
    DecayConfig,
    GrokfastConfig,
    InverseWidthConfig,
    LionConfig,
    MuonConfig,
    NorMuonConfig,
    RoleConfig,
    ScheduleFreeConfig,
    SgdConfig,
    SoapConfig,
    WsdConfig,
)


@feeb.hookimpl
def feeb_optimizers() -> Iterable[feeb.OptimizerSpec]:
    yield feeb.OptimizerSpec(
        "adamw", AdamWConfig, build="feeb_optim.adamw:build", summary="Adam with decoupled weight decay, rates by role.", reference="arXiv:1711.05101"
    )
    yield feeb.OptimizerSpec(
        "muon",
        MuonConfig,
        build="feeb_optim.muon:build",
        summary="Orthogonalised momentum for matrices, AdamW for the rest.",
        reference="https://kellerjordan.github.io/posts/muon/",
    )
    yield feeb.OptimizerSpec(
        "normuon",
        NorMuonConfig,
        build="feeb_optim.muon:build_normuon",
        summary="Muon whose updates are evened out over rows; AdamW for the rest.",
        reference="arXiv:2510.05491",
        since="1.1",
    )
    yield feeb.OptimizerSpec(
        "adam", AdamConfig, build="feeb_optim.adamw:build_adam", summary="Adam, weight decay as an L2 penalty.", reference="arXiv:1412.6980", since="1.1"
    )
    yield feeb.OptimizerSpec(
        "sgd", SgdConfig, build="feeb_optim.sgd:build", summary="Gradient descent with momentum.", reference="Sutskever et al. 2013", since="1.1"
    )
    yield feeb.OptimizerSpec(
        "lion", LionConfig, build="feeb_optim.lion:build", summary="The sign of momentum, one average to keep.", reference="arXiv:2302.06675", since="1.1"
    )
    yield feeb.OptimizerSpec(
        "adafactor",
        AdafactorConfig,
        build="feeb_optim.adafactor:build",
        summary="Squares kept as row and column means, steps relative to the weights.",
        reference="arXiv:1804.04235",
        since="1.1",
    )
    yield feeb.OptimizerSpec(
        "soap",
        SoapConfig,
        build="feeb_optim.soap:build",
        summary="Adam in the eigenbases of Shampoo for matrices, AdamW for the rest.",
        reference="arXiv:2409.11321",
        since="1.1",
    )
    yield feeb.OptimizerSpec(
        "schedule_free",
        ScheduleFreeConfig,
        build="feeb_optim.schedule_free:build",
        summary="AdamW that averages its weights instead of decaying its rate.",
        reference="arXiv:2405.15682",
        since="1.1",
    )
    yield feeb.OptimizerSpec(
        "ademamix",
        AdEMAMixConfig,
        build="feeb_optim.ademamix:build",
        summary="AdamW with a second, much slower average of gradients.",
        reference="arXiv:2409.03137",
        since="1.1",
    )
    yield feeb.OptimizerSpec(
        "grokfast",
        GrokfastConfig,
        build="feeb_optim.grokfast:build",
        summary="Any optimizer on gradients whose slow part is amplified.",
        reference="arXiv:2405.20233",
        since="1.1",
    )


@feeb.hookimpl
def feeb_schedules() -> Iterable[feeb.ScheduleSpec]:
    module = "feeb_optim.schedules"
    yield feeb.ScheduleSpec("constant", ConstantConfig, build=f"{module}:build_constant", summary="The full rate, after a warmup.")
    yield feeb.ScheduleSpec("linear", DecayConfig, build=f"{module}:build_linear", summary="A straight line down, after a warmup.")
    yield feeb.ScheduleSpec("cosine", DecayConfig, build=f"{module}:build_cosine", summary="Half a cosine down, after a warmup.", reference="arXiv:1608.03983")
    yield feeb.ScheduleSpec(
        "wsd", WsdConfig, build=f"{module}:build_wsd", summary="Warmup, a stable plateau, then a short decay.", reference="arXiv:2404.06395"
    )
    yield feeb.ScheduleSpec(
        "wsd_s",
        configs.WsdSConfig,
        build=f"{module}:build_wsd_s",
        summary="A plateau with several decays, each followed by the full rate again.",
        reference="arXiv:2410.05192",
        since="1.1",
    )
    yield feeb.ScheduleSpec(
        "inverse_sqrt",
        configs.InverseSqrtConfig,
        build=f"{module}:build_inverse_sqrt",
        summary="One over the root of the step, after a warmup.",
        reference="arXiv:1706.03762",
        since="1.1",
    )
    yield feeb.ScheduleSpec(
        "one_minus_sqrt",
        DecayConfig,
        build=f"{module}:build_one_minus_sqrt",
        summary="Down as one minus the root of time, after a warmup.",
        reference="arXiv:2405.18392",
        since="1.1",
    )
    yield feeb.ScheduleSpec(
        "exponential",
        configs.ExponentialConfig,
        build=f"{module}:build_exponential",
        summary="Down by the same factor each step, after a warmup.",
        since="1.1",
    )
    yield feeb.ScheduleSpec(
        "power",
        configs.PowerConfig,
        build=f"{module}:build_power",
        summary="A power of the step, whatever the length of the run, then a short decay.",
        reference="arXiv:2408.13359",
        since="1.1",
    )
    yield feeb.ScheduleSpec("sequential", configs.SequentialConfig, build=f"{module}:build_sequential", summary="Schedules one after the other.", since="1.1")


@feeb.hookimpl
def feeb_rate_rules() -> Iterable[feeb.RateRuleSpec]:
    yield feeb.RateRuleSpec(
        "inverse_width",
        InverseWidthConfig,
        build="feeb_optim.rate_rules:build_inverse_width",
        summary="Matrix and head rates fall as 1 / d_model.",
        reference="arXiv:2203.03466",
    )
    yield feeb.RateRuleSpec(
        "mup",
        configs.MupConfig,
        build="feeb_optim.rate_rules:build_mup",
        summary="Rates by width, depth and batch, weight decay to match.",
        reference="arXiv:2203.03466, arXiv:2310.02244",
        since="1.1",
    )
    yield feeb.RateRuleSpec(
        "nanochat",
        configs.NanochatConfig,
        build="feeb_optim.rate_rules:build_nanochat",
        summary="Adam's rates by the root of width, all by the root of the batch, decay by the run's tokens.",
        reference="https://github.com/karpathy/nanochat",
        since="1.1",
    )


__all__ = [
    "AdEMAMixConfig",
    "AdafactorConfig",
    "AdamConfig",
    "AdamWConfig",
    "ConstantConfig",
    "DecayConfig",
    "GrokfastConfig",
    "InverseWidthConfig",
    "LionConfig",
    "MuonConfig",
    "NorMuonConfig",
    "RoleConfig",
    "ScheduleFreeConfig",
    "SgdConfig",
    "SoapConfig",
    "WsdConfig",
]
