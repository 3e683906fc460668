"""The command line: `layer-roles COMMAND ...`, and `python -m orchestrator ...`, which is the same."""

from __future__ import annotations

import importlib
import sys

from orchestrator import __version__
from orchestrator.common.errors import complain, nearest

NAME = "layer-roles"
VERSION = f"{NAME} {__version__}"  # what every command prints for --version
COMMANDS = {
    "run": ("orchestrator.__main__", "train every arm of an experiment at every seed, compare, report; or resume"),
    "status": ("orchestrator.status", "what runs, what failed and why; watch, resume or cancel"),
    "compare": ("orchestrator.compare", "tables, figures and report of an experiment; several side by side"),
    "forensics": ("orchestrator.forensics.__main__", "the role of each layer of any checkpoint"),
    "intervene": ("orchestrator.intervene", "delete layers of a trained model and measure the cost"),
    "export": ("orchestrator.export", "write a model for transformers, with fewer layers if wanted; or import one"),
    "trace": ("orchestrator.trace", "what each layer does to a text"),
    "job": ("orchestrator.job", "train one cell in this process, as the jobs of a launch do"),
    "completion": ("orchestrator.common.completion", f"for bash: source <({NAME} completion bash)"),
}  # command → module, whose main() returns the exit code; what it does
HELP = """\
usage: layer-roles COMMAND ...

Train paired transformers and read what a change did inside them.

To start:
  layer-roles                                   list the experiments and their questions
  layer-roles run +experiment=width_ablation    train both arms, compare, report: 3 minutes on two cores

Commands (`run` may be left out before an override; layer-roles COMMAND --help says more):
{commands}

Documentation, in the repository: README.md, docs/ (one page per need), docs/SCIENCE.md (the definitions).
"""


def main() -> int:
    """Call the command that the first argument names, or `run` for an override or no argument; return its exit code."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    if command in ("--help", "-h"):
        print(HELP.format(commands="\n".join(f"  {name:<12}{does}" for name, (_, does) in COMMANDS.items())), end="")
        return 0
    if command in COMMANDS:
        del sys.argv[1]
    elif command and "=" not in command and command[0] not in "-+~":
        complain(
            f"'{command}' is neither a command nor an override{nearest(command, COMMANDS)}: "
            f"{NAME} --help lists the commands, an override is key=value, and an experiment +experiment=NAME."
        )
        return 2
    module, _ = COMMANDS.get(command, COMMANDS["run"])
    return importlib.import_module(module).main()
