"""`feeb completion`: for bash, zsh and fish. The scripts ask `feeb __complete`, which feeb_pipelines.cli.complete answers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

Shell = Literal["bash", "zsh", "fish"]

SCRIPTS: dict[str, str] = {
    "bash": """\
# completion of feeb for bash
_feeb() {
    mapfile -t COMPREPLY < <("$1" __complete bash "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=/.] ]]; then compopt -o nospace; fi
}
complete -F _feeb feeb
""",
    "zsh": """\
#compdef feeb
# completion of feeb for zsh
_feeb() {
    local -a all open closed
    local one
    all=("${(@f)$("${(Q)words[1]}" __complete zsh "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
    for one in $all; do
        if [[ $one == *[=/.] ]]; then open+=("$one"); else closed+=("$one"); fi
    done
    compadd -Q -S '' -- $open
    compadd -Q -- $closed
}
if [[ ${funcstack[1]} == _feeb ]]; then
    _feeb "$@"
else
    (( $+functions[compdef] )) || { autoload -Uz compinit && compinit -u }
    compdef _feeb feeb
fi
""",
    "fish": """\
# completion of feeb for fish
function __feeb_complete
    set -l words (commandline -opc)
    set -l program $words[1]
    set -e words[1]
    $program __complete fish $words (commandline -ct) 2>/dev/null
end
complete -c feeb -f -a '(__feeb_complete)'
""",
}


def completion(
    shell: Annotated[Shell | None, Parameter(help="Shell. Default: the current one.")] = None,
    /,
    *,
    install: Annotated[bool, Parameter(help="Install the script and source it from the startup file of the shell.", negative=(), show_default=False)] = False,
) -> None:
    """Print or install the shell completion script: commands, options, recipes, stages, runs, kinds, parts and keys of --set.

    Examples:
        feeb completion --install
        feeb completion bash > ~/.local/share/bash-completion/completions/feeb
    """
    from feeb_pipelines.cli.complete import refresh_knowledge
    from feebcore.errors import FeebError

    chosen = shell or Path(os.environ.get("SHELL", "")).name
    if chosen not in SCRIPTS:
        raise FeebError(f"no completion for {chosen or 'this shell'!r}; name one of {', '.join(SCRIPTS)}, as in feeb completion bash")
    if not install:
        print(SCRIPTS[chosen], end="")
        return
    refresh_knowledge()
    for path in _install(chosen):
        print(f"written to {path}")
    print("open a new shell")


def _install(shell: str) -> list[Path]:
    """Write the script, and what sources it; the files that were changed."""
    home = Path.home()
    if shell == "fish":
        script = Path(os.environ.get("XDG_CONFIG_HOME", home / ".config")) / "fish" / "completions" / "feeb.fish"
        startup = None
    else:
        script = Path(os.environ.get("XDG_DATA_HOME", home / ".local" / "share")) / "feeb" / f"completion.{shell}"
        startup = home / ".bashrc" if shell == "bash" else Path(os.environ.get("ZDOTDIR", home)) / ".zshrc"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(SCRIPTS[shell], encoding="utf-8")
    if startup is None:
        return [script]
    line = f"source '{script}'"
    text = startup.read_text(encoding="utf-8") if startup.exists() else ""
    if line in text:
        return [script]
    startup.write_text(f"{text}{'' if text.endswith(chr(10)) or not text else chr(10)}{line}\n", encoding="utf-8")
    return [script, startup]


COMMANDS = (completion,)
