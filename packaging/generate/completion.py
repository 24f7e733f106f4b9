"""Completion scripts for bash, zsh and fish, made from the grammar of the command line.

They complete commands, flags, values that can be listed, and files.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from generate import grammar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from generate.grammar import Command, Option

_BASH = """\
# Completion of echod for bash. Generated: do not edit.
_echod() {{
    local word command= flag= current=${{COMP_WORDS[COMP_CWORD]#=}}
    COMPREPLY=()
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        if [[ $flag ]]; then
            [[ $word = "=" ]] || flag=
            continue
        fi
        case $word in
            {valued}) flag=$word; continue ;;
            -*) continue ;;
        esac
        # Bash splits a value with a colon into several words. The first is skipped above; the others name no command.
        case ${{command:+$command }}$word in
            {commands}) command="${{command:+$command }}$word" ;;
            *) command=${{command:-$word}} ;;
        esac
    done
    if [[ $flag ]]; then
        case $flag in
{values}
        esac
        return
    fi
    case $command in
{words}
    esac
}}
complete -F _echod echod
"""
_BASH_WORDS = '            {pattern}) COMPREPLY=($(compgen -W "{words}" -- "$current")) ;;'
_BASH_FILES = (
    '            {pattern}) compopt -o filenames && mapfile -t COMPREPLY < <(compgen -f -- "${{current//\\\\/}}") ;;'
)


_ZSH_QUOTED = '[]:"`$'


def bash() -> str:
    """Return the script for bash. It does not need the bash-completion library."""
    root = grammar.read()
    options = _distinct(option for command in root.all for option in command.options if option.value)
    values = [
        _BASH_FILES.format(pattern="|".join(option.flags))
        if option.is_file
        else _BASH_WORDS.format(pattern="|".join(option.flags), words=" ".join(option.choices))
        for option in options
        if option.is_file or option.choices
    ]
    words = [
        _BASH_WORDS.format(
            pattern=f'"{" ".join(command.words)}"',
            words=" ".join(
                [*(below.words[-1] for below in command.commands)]
                + [flag for option in command.options for flag in option.flags]
            ),
        ).removeprefix("    ")
        for command in root.all
    ]
    return _BASH.format(
        valued="|".join(flag for option in options for flag in option.flags),
        commands="|".join(f'"{" ".join(command.words)}"' for command in root.all if command.words),
        values="\n".join(values),
        words="\n".join(words),
    )


def zsh() -> str:
    """Return the function for zsh."""
    lines = ["#compdef echod", "# Completion of echod for zsh. Generated: do not edit."]
    for command in grammar.read().all:
        lines += ["", f"{_zsh_name(command)}() {{", *(f"    {line}" for line in _zsh_body(command)), "}"]
    return "\n".join([*lines, "", '_echod "$@"', ""])


def _zsh_name(command: Command) -> str:
    return "_".join(("_echod", *command.words))


def _zsh_body(command: Command) -> list[str]:
    specs = [_zsh_option(option) for option in command.options]
    specs += [
        _quoted(f"{'*' if argument.any_number else ''}:{_zsh_text(argument.value)}:") for argument in command.arguments
    ]
    if not command.commands:
        return ["_arguments \\", *_continued(specs)]
    names = [f'{below.words[-1]}\\:"{_zsh_text(below.text, _ZSH_QUOTED)}"' for below in command.commands]
    specs += [_quoted(f"1:command:(({' '.join(names)}))"), "'*::argument:->argument'"]
    cases = [f"    {below.words[-1]}) {_zsh_name(below)} ;;" for below in command.commands]
    return [
        "local context curcontext=$curcontext state line",
        "_arguments -C \\",
        *_continued(specs),
        "[[ $state = argument ]] && case $line[1] in",
        *cases,
        "esac",
    ]


def _zsh_option(option: Option) -> str:
    value = ""
    flags = list(option.flags)
    if option.value:
        action = "_files" if option.is_file else f"({' '.join(option.choices)})" if option.choices else ""
        value = f":{_zsh_text(option.value)}:{action}"
        flags = [f"{flag}=" if flag.startswith("--") else flag for flag in flags]  # `--flag value` and `--flag=value`
    spec = _quoted(f"[{_zsh_text(_brief(option.text))}]{value}")
    if len(flags) == 1:
        return f"'{flags[0]}'{spec}"
    return f"'({' '.join(option.flags)})'{{{','.join(flags)}}}{spec}"


def _zsh_text(text: str, special: str = "[]:") -> str:
    return re.sub(f"[{re.escape(special)}\\\\]", r"\\\g<0>", text)


def fish() -> str:
    """Return the script for fish."""
    root = grammar.read()
    lines = ["# Completion of echod for fish. Generated: do not edit.", "complete -c echod -f"]
    for command in root.all:
        names = [below.words[-1] for below in command.commands]
        here = _fish_condition(command, names)
        lines += [f"{here} -a {below.words[-1]} -d {_fish_quoted(below.text)}" for below in command.commands]
        lines += [f"{here} {_fish_option(option)}" for option in command.options]
    return "\n".join([*lines, ""])


def _fish_condition(command: Command, below: list[str]) -> str:
    if not command.words:
        return "complete -c echod -n __fish_use_subcommand"
    conditions = [f"__fish_seen_subcommand_from {word}" for word in command.words]
    if below:
        conditions.append(f"not __fish_seen_subcommand_from {' '.join(below)}")
    return f"complete -c echod -n '{'; and '.join(conditions)}'"


def _fish_option(option: Option) -> str:
    words = [f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in option.flags]
    if option.is_file:
        words.append("-r -F")
    elif option.value:
        words.append(f"-x -a {_fish_quoted(' '.join(option.choices))}" if option.choices else "-x")
    return " ".join([*words, f"-d {_fish_quoted(_brief(option.text))}"])


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _continued(lines: list[str]) -> list[str]:
    return [f"    {line} \\" for line in lines[:-1]] + [f"    {lines[-1]}"]


def _brief(text: str) -> str:
    """Return the first sentence: the whole text is too long beside a flag."""
    return re.split(r"(?<!e\.g)\. | \[[A-Z_]+\]", text)[0].removesuffix(".")


def _distinct(options: Iterable[Option]) -> list[Option]:
    """Return each option once, also if several commands have it, with a text of their own each."""
    return list({(option.flags, option.value): option for option in options}.values())
