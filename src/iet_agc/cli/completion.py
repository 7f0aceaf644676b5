"""Scripts for bash and zsh that complete verbs, options, choices and presets: made from the parser, without Python."""

import argparse
from collections.abc import Mapping, Sequence

__all__ = ["SHELLS", "completion"]

SHELLS = "bash", "zsh"

#: Both shells run the same function: zsh by its own emulation of bash's completion.
_BEFORE = {"bash": "", "zsh": "#compdef iet-agc\nautoload -U +X bashcompinit && bashcompinit\n"}

_SCRIPT = """\
_iet_agc() {
    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "%(verbs)s" -- "$word"))
        return
    fi
    case "${COMP_WORDS[1]} $before" in
%(values)s
    esac
    if [ -z "$words" ]; then
        case "${COMP_WORDS[1]}" in
%(options)s
        esac
        case "$word" in
            -*) ;;
            *) words="" ;;
        esac
    fi
    if [ -n "$words" ]; then
        COMPREPLY=($(compgen -W "$words" -- "$word"))
    fi
}
complete -o default -F _iet_agc iet-agc
"""


def completion(
    shell: str, verbs: Mapping[str, argparse.ArgumentParser], presets: Sequence[str], settings: Sequence[str]
) -> str:
    """The script for a shell; where it has nothing to offer, the shell completes paths.

    Args:
        shell: of `SHELLS`.
        verbs: the parser of each.
        presets: names that stand behind 'train' and 'pipeline'.
        settings: dotted names, options of 'train'.
    """
    values = [line for name, parser in verbs.items() for line in _values(name, parser)]
    values += [f'        "{verb} {verb}") words="{" ".join(presets)}" ;;' for verb in ("train", "pipeline")]
    options = []
    for name, parser in verbs.items():
        words = sorted({option for action in parser._actions for option in action.option_strings})
        words += [f"--{setting}" for setting in settings] if name == "train" else []
        options.append(f'            {name}) words="{" ".join(words)}" ;;')
    parts = {"verbs": " ".join(verbs), "values": "\n".join(values), "options": "\n".join(options)}
    return _BEFORE[shell] + (_SCRIPT % parts).rstrip()


def _values(verb: str, parser: argparse.ArgumentParser) -> list[str]:
    """What may stand behind each option, or the verb, that has choices."""
    lines = []
    for action in parser._actions:
        if action.choices:
            before = action.option_strings or [verb]
            pattern = "|".join(f'"{verb} {option}"' for option in before)
            lines.append(f'        {pattern}) words="{" ".join(map(str, action.choices))}" ;;')
    return lines
