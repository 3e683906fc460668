"""Write docs/keys.md from orchestrator/config/schema.py and conf/: `python docs/generate_keys.py`, or `make docs`."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import re
import tokenize
import types
import typing
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from orchestrator.config import schema
from orchestrator.config.compose import CONF, compose

PAGE = Path(__file__).with_name("keys.md")
HEAD = """\
# Every configuration key

This page is generated from `orchestrator/config/schema.py` and `conf/`: `make docs`. A *key* is one setting, written
`group.key=value` on the command line (`optim.lr=0.001`) or nested in YAML. A *choice* sets a whole group at once
(`width=ramp`). `null` means "not set". A misspelt key, or a value of the wrong type, is refused before anything runs.

```sh
python -m orchestrator +experiment=width_ablation optim.lr=0.001 --cfg job    # the configuration as composed
```

## Choices

Each is a file of `conf/<group>/`. A directory of your own with the same layout adds to them: `--config-dir my-conf`, or
`~/.config/layer-roles`.

| choice | is |
| --- | --- |
"""
SCIENCE = re.compile(r"SCIENCE §\d+")
Comments = dict[tuple[str, str], str]  # class and field → the comment beside the field
TABLE = "| key | type | default | meaning |\n| --- | --- | --- | --- |\n"


def page() -> str:
    """The page as Markdown."""
    comments, docs = _comments(), _docs()
    parts = [HEAD + "".join(_choices())]
    top, groups = [], []
    for field in dataclasses.fields(schema.Config):
        kind = _hints(schema.Config)[field.name]
        (groups if dataclasses.is_dataclass(kind) else top).append((field, kind))
    composed = _composed()
    parts.append(f"## The experiment\n\n{TABLE}" + "".join(_rows(schema.Config, "", top, comments, composed)))
    for field, kind in groups:
        parts.append(_group(field.name, kind, comments, docs, getattr(composed, field.name)))
    return "\n".join(parts)


def _group(path: str, kind: type, comments: Comments, docs: dict[str, str], composed: Any) -> str:
    """The keys of one group, and after them those of the groups in it. `composed`: its values; None in a mapping."""
    own, nested = [], []
    for field in dataclasses.fields(kind):
        hint = _hints(kind)[field.name]
        inner = hint
        name = f"{path}.{field.name}"
        if typing.get_origin(hint) is dict and dataclasses.is_dataclass(typing.get_args(hint)[1]):
            inner, name = typing.get_args(hint)[1], f"{name}.<name>"
        if dataclasses.is_dataclass(inner):
            values = getattr(composed, field.name, None) if inner is hint else None
            nested.append(_group(name, typing.cast(type, inner), comments, docs, values))
        else:
            own.append((field, hint))
    doc = SCIENCE.sub(r"[\g<0>](SCIENCE.md)", f"{docs[kind.__name__]}\n\n") if kind.__name__ in docs else ""
    return "\n".join(
        [f"## `{path}`\n\n{doc}{TABLE}" + "".join(_rows(kind, f"{path}.", own, comments, composed)), *nested]
    )


def _rows(kind: type, prefix: str, fields: list[Any], comments: Comments, composed: Any) -> Iterator[str]:
    for field, hint in fields:
        comment = comments[kind.__name__, field.name].replace("<", "&lt;")
        meaning = SCIENCE.sub(r"[\g<0>](SCIENCE.md)", comment)
        value = _default(field) if composed is None else getattr(composed, field.name)
        cells = (f"`{prefix}{field.name}`", _type(hint), f"`{_as_yaml(value)}`", meaning)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _type(hint: Any) -> str:
    """The type in words: the values of an enum, `int or null`, `list of int`."""
    if isinstance(hint, types.UnionType):
        return " or ".join("null" if part is type(None) else _type(part) for part in typing.get_args(hint))
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is list:
        return f"list of {_type(arguments[0])}"
    if typing.get_origin(hint) is dict:
        return f"mapping to {_type(arguments[1])}"
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return ", ".join(f"`{value}`" for value in hint)
    return "any" if hint is Any else str(hint.__name__)


def _composed() -> schema.Config:
    """The configuration without any override: the schema's defaults under the choices of `conf/config.yaml`."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose([])


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]


def _as_yaml(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return '""' if value == "" else str(value)


def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _comments() -> Comments:
    """Class and field → the comment beside the field, in `schema.py`."""
    source = inspect.getsource(schema)
    on_line = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    return {
        (node.name, field.target.id): " ".join(
            on_line[line] for line in range(field.lineno, (field.end_lineno or field.lineno) + 1) if line in on_line
        )
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
        for field in node.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }


def _docs() -> dict[str, str]:
    """Class → its docstring, for those that have one of their own."""
    classes = (node for node in ast.parse(inspect.getsource(schema)).body if isinstance(node, ast.ClassDef))
    return {node.name: " ".join(doc.split()) for node in classes if (doc := ast.get_docstring(node))}


def _choices() -> Iterator[str]:
    """One row per file of `conf/`: what an experiment asks, else the first sentence of the file, else its values."""
    for file in sorted(CONF.glob("*/*.yaml")):
        text, group = file.read_text(encoding="utf-8"), file.parent.name
        values = yaml.safe_load(text) or {}
        comment = " ".join(line.lstrip("# ") for line in text.splitlines() if re.match("# (?!@)", line))
        plain = ", ".join(f"{key}: {value}" for key, value in values.items()) or "the defaults"
        said = values.get("question") or re.split(r"(?<=\.) (?=[A-Z])", comment)[0] or plain
        yield f"| `{'+' * (group == 'experiment')}{group}={file.stem}` | {said} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
