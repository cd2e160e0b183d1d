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
        "adamw",
        AdamWConfig,
        build="feeb_optim.adamw:build",
        summary="Adam with decoupled weight decay, rates by role.",
        reference="arXiv:1711.05101",
        equation="m = lerp(m, g, 1 − β1);   v = lerp(v, g², 1 − β2)\nw −= η (m/(1 − β1^n) / (√(v/(1 − β2^n)) + eps) + λ w)",
    )
    yield feeb.OptimizerSpec(
        "muon",
        MuonConfig,
        build="feeb_optim.muon:build",
        summary="Orthogonalized momentum for matrices, AdamW for the rest.",
        reference="https://kellerjordan.github.io/posts/muon/",
        equation="m = lerp(m, g, 1 − μ);   u = lerp(g, m, μ);   matrices: W −= η (√max(1, rows / columns) NS(u) + λ W)\n"
        "NS(U S Vᵀ) ≈ U Vᵀ by ns_steps of X ← a X + (b X Xᵀ + c (X Xᵀ)²) X;   the other roles: adamw",
    )
    yield feeb.OptimizerSpec(
        "normuon",
        NorMuonConfig,
        build="feeb_optim.muon:build_normuon",
        summary="Muon whose updates are evened out over rows; AdamW for the rest.",
        reference="arXiv:2510.05491",
        since="1.1",
        equation="O = NS(u) as in muon;   q = lerp(q, mean of O² over each row, 1 − β);   O ← O / √q · |O| / |O / √q|\nthen as muon with O in place of NS(u)",
    )
    yield feeb.OptimizerSpec(
        "adam",
        AdamConfig,
        build="feeb_optim.adamw:build_adam",
        summary="Adam, weight decay as an L2 penalty.",
        reference="arXiv:1412.6980",
        since="1.1",
        equation="g += λ w;   then as adamw with λ = 0",
    )
    yield feeb.OptimizerSpec(
        "sgd",
        SgdConfig,
        build="feeb_optim.sgd:build",
        summary="Gradient descent with momentum.",
        reference="Sutskever et al. 2013",
        since="1.1",
        equation="g += λ w;   m = μ m + g  (m = g at first);   w −= η m      nesterov: η (g + μ m)",
    )
    yield feeb.OptimizerSpec(
        "lion",
        LionConfig,
        build="feeb_optim.lion:build",
        summary="The sign of momentum, one average to keep.",
        reference="arXiv:2302.06675",
        since="1.1",
        equation="c = lerp(m, g, 1 − β1);   w −= η (sign(c) + λ w);   m = lerp(m, g, 1 − β2)",
    )
    yield feeb.OptimizerSpec(
        "adafactor",
        AdafactorConfig,
        build="feeb_optim.adafactor:build",
        summary="Squares kept as row and column means, steps relative to the weights.",
        reference="arXiv:1804.04235",
        since="1.1",
        equation="V_ij = row_i column_j / mean(row), averages of g² that forget by n^−beta2_decay;   U = g / √V, clipped to root mean square clip_threshold\n"
        "w −= max(min_scale, rms(w)) min(η, 1/√n) U",
    )
    yield feeb.OptimizerSpec(
        "soap",
        SoapConfig,
        build="feeb_optim.soap:build",
        summary="Adam in the eigenbases of Shampoo for matrices, AdamW for the rest.",
        reference="arXiv:2409.11321",
        since="1.1",
        equation="L = lerp(L, G Gᵀ, 1 − β);   R = lerp(R, Gᵀ G, 1 − β);   Q_L, Q_R: their eigenvectors, renewed every precondition_every steps\n"
        "adam's m of G and v of Q_Lᵀ G Q_R;   W −= η Q_L [Q_Lᵀ m Q_R / (√v + eps)] Q_Rᵀ, bias-corrected;   then W −= η λ W;   the other roles: adamw",
    )
    yield feeb.OptimizerSpec(
        "schedule_free",
        ScheduleFreeConfig,
        build="feeb_optim.schedule_free:build",
        summary="AdamW that averages its weights instead of decaying its rate.",
        reference="arXiv:2405.15682",
        since="1.1",
        equation="g taken at w = β1 x + (1 − β1) z;   v = lerp(v, g², 1 − β2);   d = g / (√(v/(1 − β2^n)) + eps) + λ w\n"
        "z −= η d;   x = lerp(x, z, c_n),   c_n = η_max,n² / Σ_{i ≤ n} η_max,i²  (η_max,n: largest η so far);   evaluated at x",
    )
    yield feeb.OptimizerSpec(
        "ademamix",
        AdEMAMixConfig,
        build="feeb_optim.ademamix:build",
        summary="AdamW with a second, much slower average of gradients.",
        reference="arXiv:2409.03137",
        since="1.1",
        equation="m1 = lerp(m1, g, 1 − β1);   m2 = lerp(m2, g, 1 − slow_beta);   v = lerp(v, g², 1 − β2)\n"
        "w −= η ((m1/(1 − β1^n) + alpha m2) / (√(v/(1 − β2^n)) + eps) + λ w)",
    )
    yield feeb.OptimizerSpec(
        "grokfast",
        GrokfastConfig,
        build="feeb_optim.grokfast:build",
        summary="Any optimizer on gradients whose slow part is amplified.",
        reference="arXiv:2405.20233",
        since="1.1",
        equation="h = lerp(h, g, 1 − alpha)  (h = g at first);   the inner optimizer is given g + strength h",
    )


@feeb.hookimpl
def feeb_schedules() -> Iterable[feeb.ScheduleSpec]:
    module = "feeb_optim.schedules"
    yield feeb.ScheduleSpec("constant", ConstantConfig, build=f"{module}:build_constant", summary="The full rate, after a warmup.", equation="f = 1")
    yield feeb.ScheduleSpec(
        "linear",
        DecayConfig,
        build=f"{module}:build_linear",
        summary="A straight line down, after a warmup.",
        equation="f = φ + (1 − φ)(1 − p),   φ = final_fraction",
    )
    yield feeb.ScheduleSpec(
        "cosine",
        DecayConfig,
        build=f"{module}:build_cosine",
        summary="Half a cosine down, after a warmup.",
        reference="arXiv:1608.03983",
        equation="f = φ + (1 − φ)(1 + cos(π p)) / 2",
    )
    yield feeb.ScheduleSpec(
        "wsd",
        WsdConfig,
        build=f"{module}:build_wsd",
        summary="Warmup, a stable plateau, then a short decay.",
        reference="arXiv:2404.06395",
        equation="f = 1;   in the last decay_fraction of the run φ + (1 − φ) shape(p), linear: shape(p) = 1 − p",
    )
    yield feeb.ScheduleSpec(
        "wsd_s",
        configs.WsdSConfig,
        build=f"{module}:build_wsd_s",
        summary="A plateau with several decays, each followed by the full rate again.",
        reference="arXiv:2410.05192",
        since="1.1",
        equation="f = 1;   before each of `ends`, in decay_fraction of the steps up to it, 1 / (p/φ + 1 − p), then 1 again",
    )
    yield feeb.ScheduleSpec(
        "inverse_sqrt",
        configs.InverseSqrtConfig,
        build=f"{module}:build_inverse_sqrt",
        summary="One over the root of the step, after a warmup.",
        reference="arXiv:1706.03762",
        since="1.1",
        equation="f = √(τ / (τ + n − warmup)),   τ = timescale, by default the warmup's length",
    )
    yield feeb.ScheduleSpec(
        "one_minus_sqrt",
        DecayConfig,
        build=f"{module}:build_one_minus_sqrt",
        summary="Down as one minus the root of time, after a warmup.",
        reference="arXiv:2405.18392",
        since="1.1",
        equation="f = φ + (1 − φ)(1 − √p)",
    )
    yield feeb.ScheduleSpec(
        "exponential",
        configs.ExponentialConfig,
        build=f"{module}:build_exponential",
        summary="Down by the same factor each step, after a warmup.",
        since="1.1",
        equation="f = φ^p",
    )
    yield feeb.ScheduleSpec(
        "power",
        configs.PowerConfig,
        build=f"{module}:build_power",
        summary="A power of the step, whatever the length of the run, then a short decay.",
        reference="arXiv:2408.13359",
        since="1.1",
        equation="f = max(n / onset, 1)^−exponent;   in the last decay_fraction times φ + (1 − φ) shape(p)",
    )
    yield feeb.ScheduleSpec(
        "sequential",
        configs.SequentialConfig,
        build=f"{module}:build_sequential",
        summary="Schedules one after the other.",
        since="1.1",
        equation="f(n) = scale_i f_i(n − begin_i) in piece i",
    )


@feeb.hookimpl
def feeb_lr_scalings() -> Iterable[feeb.LRScalingSpec]:
    yield feeb.LRScalingSpec(
        "inverse_width",
        InverseWidthConfig,
        build="feeb_optim.lr_scalings:build_inverse_width",
        summary="Matrix and head rates fall as 1 / d_model.",
        reference="arXiv:2203.03466",
    )
    yield feeb.LRScalingSpec(
        "mup",
        configs.MupConfig,
        build="feeb_optim.lr_scalings:build_mup",
        summary="Rates by width, depth and batch, weight decay to match.",
        reference="arXiv:2203.03466, arXiv:2310.02244",
        since="1.1",
    )
    yield feeb.LRScalingSpec(
        "nanochat",
        configs.NanochatConfig,
        build="feeb_optim.lr_scalings:build_nanochat",
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
