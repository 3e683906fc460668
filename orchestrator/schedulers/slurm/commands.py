"""Slurm's own commands, any of which may be missing on this machine."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

TIMEOUT = 30.0  # seconds for one command; a controller that is restarting answers late
# Variables by which users give these commands options that would filter or rearrange what they print.
USER_OPTIONS = re.compile(r"(SQUEUE|SACCT|SCONTROL|SINFO|SCANCEL)_")
NO_ANSWER = re.compile(
    r"unable to contact|timed out|has not answered|zero bytes were transmitted|connection refused|standby mode"
    r"|unable to establish|communication connection failure|temporarily un",
    re.IGNORECASE,
)


def ask(*command: str) -> str | None:
    """The output of a command; None where it is missing or fails."""
    try:
        done = _run(*command)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def refusal(script: Path) -> str | None:
    """The reason, in its own words, for which sbatch would refuse the script; None where it would accept it."""
    try:
        done = _run("sbatch", "--test-only", str(script))
    except subprocess.TimeoutExpired:
        return f"it has not answered for {TIMEOUT:.0f} s"
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    if done.returncode == 0:
        return None
    reason = " ".join(done.stderr.replace("sbatch: error:", "").replace("allocation failure:", "").split())
    if "partition" in reason and (names := ask("sinfo", "-h", "-o", "%R")):
        reason += f"; there are {', '.join(sorted(set(names.split())))}"
    return reason or f"sbatch ended with {done.returncode}"


def is_no_answer(message: str) -> bool:
    """True for a message that says that the controller cannot be reached."""
    return bool(NO_ANSWER.search(message))


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not USER_OPTIONS.match(name)}
    environment = {**kept, "SLURM_TIME_FORMAT": "standard"}
    return subprocess.run(
        command, capture_output=True, encoding="utf-8", errors="replace", timeout=TIMEOUT, env=environment
    )
