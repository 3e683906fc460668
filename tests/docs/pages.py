"""The fenced blocks of README.md and docs/, and a directory in which the blocks of one section are run in order."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
LANGUAGES = ("sh", "python", "yaml", "diff", "text")  # text is what a program prints, and is not run
MARK = re.compile(r"<!-- (?:needs: (?P<needs>.+)|(?P<slow>slow)) -->")
FILE = re.compile(r"(?:# @package _global_\n)?# ([\w./-]+/[\w./-]+\.(?:yaml|py))(?=[\s:])")  # the file that a block is
CODE = ("orchestrator", "models", "sidecar", "conf", "tests", "docs")
BESIDE = ("tracker=off", "launcher=debug", "sidecar.interval=4", "sidecar.warmup=0")  # unless a command says otherwise
OURS = re.compile(r"(?:python -m orchestrator|layer-roles)\b")
SWEPT = re.compile(r"^([\w./+-]+=[^\[\],]+),.*")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    section: str  # the heading above it
    line: int
    language: str
    text: str
    needs: str  # what it needs and a test has not; it is then only parsed
    slow: bool

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that the block is the content of, or that a diff changes."""
        if self.language == "diff":
            return self.text.splitlines()[0].removeprefix("--- ").strip()
        found = FILE.match(self.text)
        return found[1] if found and self.language in ("yaml", "python") else None


def blocks_of(path: Path) -> list[Block]:
    """The blocks of a page in their order. Raises `ValueError` for a fence that does not end."""
    found, section, mark, opened = [], "", "", None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("```"):
            if opened is None:
                opened = (number, line[3:].strip(), mark, list[str]())
            else:
                start, language, marks, lines = opened
                needs = [match["needs"] for match in MARK.finditer(marks) if match["needs"]]
                slow = any(match["slow"] for match in MARK.finditer(marks))
                text = "\n".join(lines) + "\n"
                found.append(Block(path.name, section, start, language, text, ", ".join(needs), slow))
                opened, mark = None, ""
        elif opened is not None:
            opened[3].append(line)
        elif line.startswith("## "):
            section = line[3:]
        elif line.startswith("<!--"):
            mark += line
        elif line.strip():
            mark = ""
    if opened is not None:
        raise ValueError(f"{path.name}:{opened[0]} is not closed")
    return found


def commands(text: str) -> Iterator[str]:
    """The commands of a shell block: one per line, lines that end in a backslash joined to the next."""
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line


def words(command: str, directory: Path) -> list[str] | None:
    """The words of one of our commands, as bash expands them; None for any other command, and for a pipeline."""
    split = shlex.shlex(command, posix=True, punctuation_chars=True)
    split.whitespace_split = True
    if not OURS.match(command) or any(set(word) <= set("|&;<>()") for word in split):
        return None
    script = (
        f'python() {{ printf "%s\\0" python "$@"; }}; layer-roles() {{ printf "%s\\0" layer-roles "$@"; }}; {command}'
    )
    done = subprocess.run(["bash", "-c", script], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def reduced(argv: list[str], small: tuple[str, ...]) -> list[str]:
    """The command with a model, a run and seeds so small that it takes seconds."""
    trains = argv[:3] == ["python", "-m", "orchestrator"] or argv[:2] == ["layer-roles", "run"]
    if not trains or not any("=" in word for word in argv) or "--cfg" in argv:
        return argv
    given = {word.lstrip("+").partition("=")[0] for word in argv}
    several = ("seeds=[0,1]",) if "experiment" in given else ()
    more = [word for word in (*BESIDE, *several) if word.partition("=")[0] not in given]
    fewer = [f"train.steps={max(12, int(word[12:]) // 8)}" for word in argv if word.startswith("train.steps=")]
    fewer += ["decide.min=2", "decide.max=2"] if "seeds=auto" in argv else []
    fewer += ["search.trials=3", "search.batch=3"] if "+experiment=lr_search" in argv else []
    return [*argv, *(word for word in small if word != "tracker=off"), *more, *fewer]


def module_of(argv: list[str]) -> tuple[str, list[str]]:
    """The module whose `main` a command calls, and its arguments."""
    if argv[0] == "layer-roles":
        return "orchestrator.common.cli", argv[1:]
    name, arguments = argv[2], argv[3:]
    return (f"{name}.__main__" if name in ("orchestrator", "orchestrator.forensics") else name), arguments


def call(argv: list[str], directory: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """One of our commands in this process; returns its exit code."""
    name, arguments = module_of(argv)
    GlobalHydra.instance().clear()
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "argv", ["layer-roles" if argv[0] == "layer-roles" else name, *arguments])
    try:
        return int(importlib.import_module(name).main() or 0)
    except SystemExit as exit:
        return int(exit.code or 0)


@dataclass
class Section:
    """The blocks under one heading, which are run in order in a directory of their own."""

    blocks: list[Block]
    directory: Path
    small: tuple[str, ...]
    ran: set[int] = field(default_factory=set)  # lines of the blocks that were run
    names: dict[str, Any] = field(default_factory=dict)  # what its Python blocks have defined

    @property
    def patched(self) -> bool:
        """True where the section changes the code: its commands then run in processes that see the change."""
        return any((block.file or "").split("/")[0] in CODE[:3] for block in self.blocks)

    @property
    def has_outputs(self) -> bool:
        """True where the section speaks of what the default experiment left, and of the layers of its model."""
        return any("outputs/" in block.text for block in self.blocks)

    def prepare(self, trained: Path) -> None:
        """Lay out what the blocks of the section take for granted."""
        self.directory.mkdir(parents=True)
        if self.has_outputs:
            shutil.copytree(trained / "outputs", self.directory / "outputs")
        if self.patched:
            copy_code(self.directory)
        (self.directory / ".venv").symlink_to(sys.prefix)

    def run(self, block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
        """Run the block, and before it those above it in the section that were not yet run."""
        monkeypatch.setenv("HOME", str(self.directory))
        monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{Path('/usr/bin')}:/bin")
        monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
        monkeypatch.chdir(self.directory)
        for one in self.blocks[: self.blocks.index(block) + 1]:
            if one.line not in self.ran and not one.needs:
                self.ran.add(one.line)
                self._run(one, monkeypatch)

    def _run(self, block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
        if block.file:
            apply(block, self.directory)
        elif block.language == "python":
            exec(compile(block.text, block.name, "exec"), self.names)
        elif block.language == "sh":
            for command in commands(block.text):
                self._command(command, monkeypatch)

    def _command(self, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
        argv = words(command, self.directory)
        if argv is not None and not self.patched:
            code = call(reduced(argv, self.small), self.directory, monkeypatch)
            assert code == 0, f"exit code {code}: {command}"
            return
        if argv is not None:
            command = shlex.join(reduced(argv, self.small))
        monkeypatch.setenv("PYTHONPATH", str(self.directory if self.patched else ROOT))
        done = subprocess.run(["bash", "-c", command], cwd=self.directory, capture_output=True, text=True)
        print(done.stdout)
        assert done.returncode == 0, (
            f"exit code {done.returncode}: {command}\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )


def copy_code(directory: Path) -> None:
    """Copy what a recipe may change, and the settings of the linters."""
    for name in CODE:
        shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", directory)


def apply(block: Block, directory: Path) -> None:
    """Write the file that the block is, or change the file that its diff names."""
    if block.language == "diff":
        change(directory, block)
    elif block.file:
        path = directory / block.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")


def change(directory: Path, block: Block) -> None:
    """Apply a diff whose lines are context, `-` or `+`; the old text stands once in the file."""
    assert block.file is not None
    path, lines = directory / block.file, block.text.splitlines()[1:]
    old = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
    new = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{block.name}: its old text stands {text.count(old)} times in {block.file}"
    path.write_text(text.replace(old, new), encoding="utf-8")


def check(block: Block, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse what cannot be run: the shell's syntax, and the arguments of our commands, of make and of pip."""
    if block.language != "sh":
        compile(block.text, block.name, "exec") if block.language == "python" else yaml.safe_load(block.text)
        return
    subprocess.run(["bash", "-n", "-c", block.text], check=True)
    for command in commands(block.text):
        argv = words(command, directory)
        if argv is not None:
            parse(argv, directory, monkeypatch)
        elif command.startswith("make "):
            subprocess.run(["make", "-n", *shlex.split(command, comments=True)[1:]], cwd=ROOT, check=True)
        elif command.startswith("pip "):
            pip = importlib.import_module("pip._internal.commands")
            pip.create_command("install").parse_args(shlex.split(command, comments=True)[2:])


def parse(argv: list[str], directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parse the arguments of one of our commands: an override composes, an option exists."""
    from orchestrator.common import command

    name, arguments = module_of(argv)
    if name == "orchestrator.common.cli":
        from orchestrator.common.cli import COMMANDS

        name, arguments = COMMANDS[arguments[0]][0], arguments[1:]
    if name == "orchestrator.__main__":
        single = [SWEPT.sub(r"\1", word) for word in arguments if word != "-m" and not word.startswith("hydra")]
        assert call(["python", "-m", "orchestrator", *single, "--cfg", "job"], directory, monkeypatch) == 0
        return
    with monkeypatch.context() as patch:
        patch.setattr(command, "run", lambda parser, function, arguments=None: parser.parse_args(arguments) and 0)
        assert call(argv, directory, monkeypatch) == 0
