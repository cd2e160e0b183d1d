"""`feeb completion`: for bash, zsh and fish."""

from __future__ import annotations

from typing import Annotated, Literal

from cyclopts import Parameter


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"] | None, Parameter(help="Shell. Default: the current one.")] = None,
    /,
    *,
    install: Annotated[bool, Parameter(help="Install the script and source it from the startup file of the shell.", negative=(), show_default=False)] = False,
) -> None:
    """Print or install the shell completion script.

    Examples:
        feeb completion --install
        feeb completion bash > ~/.local/share/bash-completion/completions/feeb
    """
    from feeb_pipelines.cli import make_app
    from feebcore.errors import FeebError

    app = make_app()
    try:
        if install:
            print(f"written to {app.install_completion(shell=shell)}; open a new shell")
        else:
            print(app.generate_completion(prog_name="feeb", shell=shell))
    except Exception as error:
        raise FeebError(f"no completion: {error}; name the shell, as in feeb completion bash") from error


COMMANDS = (completion,)
