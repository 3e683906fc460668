"""`layer-roles completion bash`: print a script that completes commands, overrides and options in bash."""

from __future__ import annotations

from orchestrator.common import command
from orchestrator.common.cli import COMMANDS

# Hydra lists the overrides; the help of a command names its options; all else is a file. Bash takes = for the end of
# a word and replaces only what follows it.
BASH = r"""_layer_roles() {
    local line=${COMP_LINE:0:COMP_POINT} words word choices choice cut=
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    word=${words[-1]} COMPREPLY=()
    [[ $word == *=* && $COMP_WORDBREAKS == *=* ]] && cut=${word%"${word##*=}"}
    if (( ${#words[@]} == 2 )); then
        COMPREPLY=($(compgen -W "@COMMANDS@" -- "$word"))
        (( ${#COMPREPLY[@]} )) && return
    fi
    case ${words[1]} in
        run) unset "words[1]" ;;&
        run | [-+~]* | *=* | "$word")
            if [[ $word == -* ]]; then
                choices=$("${words[0]}" run --hydra-help | grep -oE -e '--[a-z-]+' | sort -u)
            else
                choices=$(COMP_LINE="${words[*]}" "${words[0]}" run -sc query=bash 2> /dev/null)
                compopt -o nospace
            fi ;;
        *) [[ $word == -* ]] && choices=$("${words[0]}" "${words[1]}" --help | grep -oE -e '--[a-z-]+' | sort -u) ;;
    esac
    while read -r choice; do
        [[ -n $choice && $choice == "$word"* ]] && COMPREPLY+=("${choice#"$cut"}")
    done <<< "${choices// /$'\n'}"
}
complete -o default -F _layer_roles layer-roles"""


def main() -> int:
    """Exit code: 0, or 2 for another shell."""
    parser = command.parser("orchestrator.common.completion", __doc__)
    parser.add_argument("shell", choices=["bash"])
    return command.run(parser, lambda _: print(BASH.replace("@COMMANDS@", " ".join(COMMANDS))))
