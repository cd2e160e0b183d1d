"""`feeb generate`: generate text with a model of the workspace."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from feeb_pipelines.cli.options import Json, WorkspaceOption
from feeb_pipelines.cli.tables import print_json

if TYPE_CHECKING:
    from feebcore.api import Run

MOST_NEW_TOKENS = 1_000_000


def generate(
    model: Annotated[str, Parameter(help="Model: STAGE/NAME, NAME, the start of a fingerprint, or the folder of an artifact or model.")],
    prompt: Annotated[str, Parameter(help="Prompt.")] = "",
    /,
    *,
    prompt_file: Annotated[Path | None, Parameter(help="Read the prompt from a file; - is standard input.")] = None,
    samples: Annotated[int, Parameter(name=["--samples", "-n"], help="Number of completions.")] = 1,
    max_new_tokens: Annotated[int, Parameter(help="Maximum number of new tokens.")] = 128,
    temperature: Annotated[float, Parameter(help="Sampling temperature; 0 is greedy decoding.")] = 0.8,
    top_k: Annotated[int | None, Parameter(help="Top-k sampling: keep the k most likely tokens.")] = None,
    top_p: Annotated[float | None, Parameter(help="Top-p (nucleus) sampling: keep the smallest set of tokens with this probability mass.")] = None,
    seed: Annotated[int, Parameter(help="Random seed.")] = 0,
    workspace: WorkspaceOption = None,
    json: Json = False,
) -> None:
    """Generate text with a trained model.

    A name that several stages share means the last stage of the chain: after the quickstart, `quickstart` is the model trained by RL and
    `pretrain/quickstart` the base model. The model that was chosen is named on stderr. Where a text outgrows the model's context, the
    last half of the context is kept.

    Examples:
        feeb generate pretrain/quickstart "def main(" --samples 3
        feeb generate rl/quickstart "72914=" --temperature 0
    """
    from feeb_pipelines.cli.options import visible
    from feebcore.api import generate as complete
    from feebcore.api import open_model, open_run

    _check_options(max_new_tokens, temperature, top_k, top_p, samples)
    prompt = _prompt(prompt, prompt_file)
    if (Path(model) / "model.json").exists():  # a model folder, as one that was exported
        opened, about, others = open_model(model), model, []
    else:
        run = open_run(model, workspace)
        opened, about, others = run.opened(), run.reference, _others(model, run, workspace)
    print(f"feeb: model {about}" + (f"; {model!r} could also be {', '.join(others)}" if others else ""), file=sys.stderr)
    length = len(opened.tokenizer.encode(prompt)) + 1
    if length < opened.model.seq_len < length + max_new_tokens:
        print(f"feeb: the model's context is {opened.model.seq_len} tokens; beyond it, text follows from the last half of it", file=sys.stderr)
    texts = complete(opened, [prompt] * samples, max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed)
    if json:
        print_json({"model": about, "prompt": prompt, "completions": texts})
        return
    for number, text in enumerate(texts):
        if samples > 1:
            print(f"{'' if number == 0 else chr(10)}--- sample {number + 1} of {samples}")
        print(visible(f"{prompt}{text}") if sys.stdout.isatty() else f"{prompt}{text}")


def _prompt(prompt: str, file: Path | None) -> str:
    from feebcore.errors import FeebError

    if file is None:
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise FeebError("the prompt is not UTF-8; set a UTF-8 locale, such as LANG=C.UTF-8, or convert the text") from None
        return prompt
    if prompt:
        raise FeebError("a prompt and --prompt-file: give one of them")
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FeebError(f"--prompt-file {file}: {error.strerror if isinstance(error, OSError) else 'it is not UTF-8 text'}") from None


def _others(text: str, run: Run, workspace: Path | None) -> list[str]:
    """Models of other stages that go by the same name."""
    from feebcore.api import runs_like

    return sorted({f"{r.stage}/{r.name}" for r in runs_like(text, workspace) if r.artifact and "model" in r.artifact.makes and r.stage != run.stage})


def _check_options(max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None, samples: int) -> None:
    from feebcore.errors import FeebError

    if not 1 <= max_new_tokens <= MOST_NEW_TOKENS:
        raise FeebError(f"--max-new-tokens must be from 1 to {MOST_NEW_TOKENS:,}, not {max_new_tokens}")
    if samples < 1:
        raise FeebError(f"--samples must be at least 1, not {samples}")
    if not 0 <= temperature < float("inf"):
        raise FeebError(f"--temperature must be at least 0, not {temperature}")
    if top_k is not None and top_k < 1:
        raise FeebError(f"--top-k must be at least 1, not {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise FeebError(f"--top-p must be above 0 and at most 1, not {top_p}")


COMMANDS = (generate,)
