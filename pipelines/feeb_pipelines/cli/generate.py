"""`feeb generate`: generate text with a model of the workspace."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from feeb_pipelines.cli.options import Json, WorkspaceOption


def generate(
    model: Annotated[str, Parameter(help="Model: run name such as quickstart, STAGE/NAME, or path of an artifact or model folder.")],
    prompt: Annotated[str, Parameter(help="Prompt.")] = "",
    /,
    *,
    max_new_tokens: Annotated[int, Parameter(help="Maximum number of new tokens.")] = 128,
    temperature: Annotated[float, Parameter(help="Sampling temperature; 0 is greedy decoding.")] = 0.8,
    top_k: Annotated[int | None, Parameter(help="Top-k sampling: keep the k most likely tokens.")] = None,
    top_p: Annotated[float | None, Parameter(help="Top-p (nucleus) sampling: keep the smallest set of tokens with this probability mass.")] = None,
    seed: Annotated[int, Parameter(help="Random seed.")] = 0,
    workspace: WorkspaceOption = None,
    json: Json = False,
) -> None:
    """Generate text with a trained model.

    A run name that several stages share refers to the last stage of the chain: after the quickstart, `quickstart` is the
    model trained by RL and `pretrain/quickstart` the base model.

    Examples:
        feeb generate pretrain/quickstart "def main("
        feeb generate rl/quickstart "72914=" --temperature 0
    """
    import sys
    from pathlib import Path

    from feeb_pipelines.cli.options import visible
    from feebcore.api import generate as complete
    from feebcore.api import open_model, open_run
    from feebcore.errors import FeebError

    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise FeebError("the prompt is not UTF-8; set a UTF-8 locale, such as LANG=C.UTF-8, or convert the text") from None
    _check_options(max_new_tokens, temperature, top_k, top_p)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    if (Path(model) / "model.json").exists():  # a model folder, as one that was exported
        text = complete(open_model(model), prompt, max_new_tokens, **options)  # type: ignore[arg-type]
    else:
        text = open_run(model, workspace).generate(prompt, max_new_tokens, **options)
    if json:
        import json as json_module

        print(json_module.dumps({"prompt": prompt, "completion": text}))
    else:
        text = f"{prompt}{text}"
        print(visible(text) if sys.stdout.isatty() else text)


def _check_options(max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None) -> None:
    from feebcore.errors import FeebError

    if max_new_tokens < 1:
        raise FeebError(f"--max-new-tokens must be at least 1, not {max_new_tokens}")
    if not 0 <= temperature < float("inf"):
        raise FeebError(f"--temperature must be at least 0, not {temperature}")
    if top_k is not None and top_k < 1:
        raise FeebError(f"--top-k must be at least 1, not {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise FeebError(f"--top-p must be above 0 and at most 1, not {top_p}")


COMMANDS = (generate,)
