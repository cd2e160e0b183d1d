"""`feeb generate`: continue a text with a model of the workspace."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from feeb_pipelines.cli.options import Json, WorkspaceOption


def generate(
    where: Annotated[str, Parameter(help="A run's name, as quickstart; or STAGE/NAME; or the path of an artifact or model folder.")],
    prompt: Annotated[str, Parameter(help="The text to continue.")] = "",
    /,
    *,
    max_new_tokens: Annotated[int, Parameter(help="Tokens to add at most.")] = 128,
    temperature: Annotated[float, Parameter(help="0 takes the likeliest token every time.")] = 0.8,
    top_k: Annotated[int | None, Parameter(help="Sample among so many likeliest tokens.")] = None,
    top_p: Annotated[float | None, Parameter(help="Sample among the likeliest tokens of this probability mass.")] = None,
    seed: int = 0,
    workspace: WorkspaceOption = None,
    json: Json = False,
) -> None:
    """Continue a text with a trained model.

    Examples:
        feeb generate quickstart "def main("
        feeb generate data/rl/quickstart-0123456789ab "sort 5 3 1:" --temperature 0
    """
    from pathlib import Path

    from feebcore.api import generate as complete
    from feebcore.api import open_model, open_run

    _check_options(max_new_tokens, temperature, top_k, top_p)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    if (Path(where) / "model.json").exists():  # a model folder, as one that was exported
        text = complete(open_model(where), prompt, max_new_tokens, **options)  # type: ignore[arg-type]
    else:
        text = open_run(where, workspace).generate(prompt, max_new_tokens, **options)
    if json:
        import json as json_module

        print(json_module.dumps({"prompt": prompt, "completion": text}))
    else:
        print(f"{prompt}{text}")


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
