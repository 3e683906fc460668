"""Slurm's commands as scripts that note what they are asked and answer from a list of jobs, for what a real one would
take too long, or too much luck, to answer."""

from __future__ import annotations

from pathlib import Path

# jobs: a line `id|STATE|reason|script` for each, of an array for each task, as squeue prints them
SCRIPTS = {
    "squeue": """
        case "$*" in *%S*) cat start;; *%T\\|*) cat jobs;; *%T*) echo PENDING;; esac
    """,
    "sacct": """
        cat sacct
    """,
    "sbatch": """
        for script in "$@"; do true; done
        case "$*" in *--test-only*) cp "$script" tested; [ ! -e says ] || { cat says >&2; exit 1; }; exit 0;; esac
        while [ -e busy ]; do sleep 0.02; done
        id=$(($(wc -l < submitted) + 1))
        if [ -e limit ] && [ "$id" -gt "$(cat limit)" ]; then
            echo 'sbatch: error: Batch job submission failed: Job violates accounting/QOS policy' >&2
            exit 1
        fi
        after=$(sed -n 's/^#SBATCH --dependency=//p' "$script")
        name=$(sed -n 's/^#SBATCH --job-name=//p' "$script")
        last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
        echo "$id $name $after" >> submitted
        if [ -n "$last" ]; then
            for task in $(seq 0 "$last"); do echo "${id}_$task|PENDING|Priority|$script" >> jobs; done
        else
            echo "$id|PENDING|Priority|$script" >> jobs
        fi
        echo "Submitted batch job $id"
    """,
    "scancel": """
        for id in "$@"; do sed -i "s/^$id|[A-Z]*|/$id|CANCELLED|/" jobs; done
    """,
    "scontrol": "",
    "sinfo": "",
    "srun": "",
}


class Scripted:
    """Commands in `bin`, which belongs in front of the PATH."""

    def __init__(self, root: Path) -> None:
        self.root, self.bin = root, root / "bin"
        self.bin.mkdir(parents=True)
        for name in ("jobs", "submitted", "asked", "environment"):
            (root / name).touch()
        for name, body in SCRIPTS.items():
            lines = ["#!/bin/bash", f"cd '{root}'", f'echo "{name} $*" >> asked', f"env > environment.{name}", body]
            (self.bin / name).write_text("\n".join(lines))
            (self.bin / name).chmod(0o755)

    def says(self, name: str, text: str) -> None:
        """Set the content of the file `name`."""
        (self.root / name).write_text(text)

    def asked(self, command: str) -> list[str]:
        """The arguments of every call of that command."""
        lines = (self.root / "asked").read_text().splitlines()
        return [line.partition(" ")[2] for line in lines if line.split()[0] == command]

    def submitted(self) -> list[str]:
        """`<id> <name> <dependency>` of every job that was submitted; an array is one."""
        return [line.strip() for line in (self.root / "submitted").read_text().splitlines()]

    def become(self, job: str, state: str) -> None:
        """Give a job, or every task of an array, another state."""
        path = self.root / "jobs"
        lines = [line.split("|") for line in path.read_text().splitlines()]
        for line in lines:
            if job in (line[0], line[0].partition("_")[0]):
                line[1] = state
        path.write_text("".join("|".join(line) + "\n" for line in lines))

    def environment(self, command: str) -> set[str]:
        """The names of the variables that the last call of that command saw."""
        return {line.partition("=")[0] for line in (self.root / f"environment.{command}").read_text().splitlines()}
