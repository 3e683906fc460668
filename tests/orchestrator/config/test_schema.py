"""Every file under conf/ composes to the schema; values that cannot work are refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose

from orchestrator.common.errors import UserError
from orchestrator.config import keys, load, schema
from tests.naming import naming

pytestmark = pytest.mark.usefixtures("hydra")

CONF = Path(__file__).parents[3] / "conf"
FILES = sorted(p.relative_to(CONF) for p in CONF.glob("*/*.yaml"))
NEEDED = {  # what a user must add to these files for them to be complete
    "data/files": ["data.domains.text.path=x.txt"],
    "data/hub": ["data.domains.text.path=some/dataset"],
    "width/explicit": ["width.widths=[64,64]"],
}


def composed(*overrides: str) -> schema.Config:
    return load.from_dictconfig(compose("config", overrides=list(overrides)))


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_composes(file: Path) -> None:
    group, option = file.parent.as_posix(), file.stem
    plus = "+" if group == "experiment" else ""
    config = composed(f"{plus}{group}={option}", *NEEDED.get(f"{group}/{option}", []))
    for arm in config.arms.values():
        composed(f"{plus}{group}={option}", *arm)
    assert len(FILES) > 15


def test_a_configuration_survives_the_disk(tmp_path: Path) -> None:
    config = composed("+experiment=width_ablation", "width=ramp", "optim.lr=0.00123456789")
    (tmp_path / "config.yaml").write_text(load.to_yaml(config))
    assert load.from_file(tmp_path / "config.yaml") == config


def test_a_cell_of_before_a_key_runs_as_it_did(tmp_path: Path) -> None:
    config = composed()
    lines = [line for line in load.to_yaml(config).splitlines() if "keep_states" not in line]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    before = load.from_file(tmp_path / "config.yaml")
    assert keys.differences(config, before) == {"train.keep_states": (2, None)}


def test_differences_name_keys_and_values() -> None:
    a, b = composed("width=uniform"), composed("width=ramp", "optim.lr=0.001")
    assert keys.differences(a, b, ignore=("width",)) == {"optim.lr": (0.002, 0.001)}
    assert {"width.profile", "width.start", "optim.lr"} <= keys.differences(a, b).keys()


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("optim.lr=0", ["optim.lr=0.0", "positive"]),
        ("optim.lr=nan", ["optim.lr=nan", "positive"]),
        ("train.steps=-5", ["train.steps=-5", "positive"]),
        ("train.micro_batch_size=3", ["train.micro_batch_size=3", "train.batch_size=4"]),
        ("optim.weight_decay=100", ["optim.lr", "optim.weight_decay", "0.2"]),
        ("optim.beta2=1.0", ["optim.beta2=1.0", "[0, 1)"]),
        ("seeds=[1,1]", ["seeds=[1, 1]"]),
        ("seeds=[0,1.0]", ["seeds=[0, 1.0]", "1.0", "whole number"]),
        ("seeds=[0,'1']", ["'1'", "whole number"]),
        ("seeds=[true]", ["True", "whole number"]),
        ("seeds=[0,null]", ["None", "whole number"]),
        ("seeds=[[0]]", ["[0]", "whole number"]),
        ("name=a/b", ["'a/b'", "slash"]),
        ("name='..'", ["'..'", "dot"]),
        ("data.domains.code.weight=0", ["data.domains.code.weight=0.0", "positive"]),
        ("data.domains.code.source=files", ["data.domains.code.path", "source=files"]),
    ],
)
def test_values_that_cannot_work_are_refused(override: str, named: list[str]) -> None:
    with pytest.raises(UserError, match=naming(*named)):
        composed(override)


def test_a_foreign_file_is_not_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=naming(tmp_path / "config.yaml", "exist")):
        load.from_file(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("- a\n- b\n")
    with pytest.raises(UserError, match=naming(tmp_path / "config.yaml", "mapping")):
        load.from_file(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("optim: {lrr: 3}\n")
    with pytest.raises(UserError, match="lrr"):
        load.from_file(tmp_path / "config.yaml")
