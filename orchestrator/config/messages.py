"""The errors of Hydra and OmegaConf, which have several lines, as one sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from orchestrator.common.errors import nearest
from orchestrator.config.keys import all_keys, flatten, key_of
from orchestrator.config.schema import Config

INNER = re.compile(r"(?<=[\[,])\s*([^\s\[\]{},'\"=]+=[^\[\]{},'\"]*)(?=[\],])")  # an override in a list, without quotes


def sentence(error: Exception, folders: Sequence[Path] = ()) -> str:
    """The error in one sentence: the file, which is in one of `folders`, the key, the reason and the cure."""
    cause = error
    while isinstance(cause.__cause__, Exception):
        cause = cause.__cause__
    lines = str(error).strip().splitlines()
    where = re.match(r"In '(.+)': ", lines[0])
    file = f"{_shown(Path(f'{where[1]}.yaml'), folders)}: " if where else ""
    if where and len(lines) > 1 and lines[0].endswith("composing config:"):  # the reason follows
        lines = lines[1:]
    outer, inner = lines[0].rstrip("."), (lines if cause is error else str(cause).strip().splitlines())[0].rstrip(".")
    named = re.search(r"full_key: (\S+)", str(error))
    key = str(getattr(cause, "full_key", None) or (named[1] if named else ""))
    if where and (key == where[1].partition("/")[0] or "Could not override" in outer):
        return f"{file}it is composed under its own folder's name: its first line must be '# @package _global_'."
    if not key:
        return f"{outer}."
    if " not in '" in inner:
        known = all_keys()
        same_end = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
        hint = f" (did you mean '{same_end[0]}'?)" if same_end else nearest(key, known)
        return f"{file}'{key}' is not a configuration key{hint}: orchestrator/config/schema.py lists them all."
    if key.partition(".")[0] == "arms":
        return f"{file}'{key}' is not a list of overrides: write [optim.lr=0.002], or [] for the defaults."
    override = re.search(r"override (\S+)", outer)
    if "is not a ListConfig" in inner and override:
        one = override[1].partition("=")[2]
        return f"{file}{override[1]} is not a list: write {key}=[{one}], with commas between several and no spaces."
    if "is not in struct" in inner:
        return f"'{key}' is new to the configuration: write ++{key}=…"
    return f"{file}{override[1] if override else key}: {inner}; orchestrator/config/schema.py says what {key} takes."


def miswritten(override: str) -> str:
    """The sentence for what Hydra cannot parse as an override."""
    unbalanced = any(override.count(a) != override.count(b) for a, b in ("[]", "{}"))
    if unbalanced or re.match(r"[+~]*[\w.]+=[\w']+:", override):  # {a: [], b: []} becomes a: [] and b: []
        return f"'{override}' is a part of an override, which the shell has split: put quotes around the whole of it."
    if (quoted := INNER.sub(r"'\1'", override)) != override:
        return f"'{override}' holds overrides, which need quotes of their own: write \"{quoted}\"."
    if (ranges := re.sub(r"(?<=[\s:])(\w+\([^()'\"]*\))(?=\s*[,}])", r'"\1"', override)) != override:
        return f"'{override}' holds ranges, which need quotes of their own: write '{ranges}'."
    if not override.isascii():
        key, _, value = override.partition("=")
        return f"'{override}' has letters that need quotes: write '{key}=\"{value}\"'."
    return f"'{override}' is not an override: write key=value, with quotes around a value of several words."


def several(error: Exception, overrides: Sequence[str]) -> str | None:
    """The sentence for one override with several values, or one choice given twice; None for any other error."""
    if found := re.match(r"Ambiguous value for argument '(.+)'", str(error)):
        key, _, values = found[1].partition("=")
        if isinstance(flatten(Config()).get(key), list):
            return f"'{found[1]}' has several values: write {key}=[{values}]."
        return (
            f"'{found[1]}' has several values: add -m to run an experiment with each, or write "
            f"'{key}=\"{values}\"' where it is one text."
        )
    if found := re.match(r"Multiple values for (\S+?)\.", str(error)):
        given = [o.partition("=")[2] for o in overrides if key_of(o) == found[1]]
        both = ",".join(given) or "…"
        return f"{found[1]} is one choice and is given several: name one, or run each with -m +{found[1]}={both}."
    return None


def _shown(file: Path, folders: Sequence[Path]) -> Path:
    """The path of the file as the user would type it; unchanged where no folder has it (--config-dir)."""
    found = next((folder / file for folder in folders if (folder / file).is_file()), file)
    return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found
