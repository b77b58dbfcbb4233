"""`smart-serve completion bash|zsh`: a script that completes commands, options and their values.

    smart-serve completion bash > ~/.local/share/bash-completion/completions/smart-serve
    smart-serve completion zsh > ~/.smart-serve.zsh && echo 'source ~/.smart-serve.zsh' >> ~/.zshrc

It is written from the commands' own options, so that pressing Tab starts no Python.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping

SHELLS = ("bash", "zsh")
_SCRIPT = """\
_smart_serve() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]}
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "%(commands)s" -- "$word"))
    return
  fi
  case "$command $before" in
%(values)s
  esac
  case "$command" in
%(options)s
  esac
}
complete -o default -F _smart_serve smart-serve
"""
_ZSH = "autoload -U +X compinit && compinit -u\nautoload -U +X bashcompinit && bashcompinit\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("shell", choices=SHELLS)


def script(shell: str, commands: Mapping[str, argparse.ArgumentParser]) -> str:
    """The script for `shell`, of `commands` by name."""
    values, options = [], []
    for name, parser in commands.items():
        for action in parser._actions:
            if action.option_strings and action.choices:
                case = "|".join(f'"{name} {option}"' for option in action.option_strings)
                values.append(_case(case, action.choices))
        # An option is completed by its names; what has none, by what it may be.
        words = [
            word for one in parser._actions for word in one.option_strings or one.choices or ()
        ]
        options.append(_case(name, words))
    filled = _SCRIPT % {
        "commands": " ".join(commands),
        "values": "\n".join(values),
        "options": "\n".join(options),
    }
    return (_ZSH if shell == "zsh" else "") + filled


def _case(pattern: str, words: Iterable[object]) -> str:
    listed = " ".join(map(str, words))
    return f'    {pattern}) COMPREPLY=($(compgen -W "{listed}" -- "$word")); return ;;'
