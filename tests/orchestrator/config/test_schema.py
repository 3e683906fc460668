"""Every file under conf/ composes to the schema; values that cannot work are refused with a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from orchestrator.common.errors import UserError
from orchestrator.config import keys, load, schema

CONF = Path(__file__).parents[3] / "conf"
FILES = sorted(p.relative_to(CONF) for p in CONF.glob("*/*.yaml"))
NEEDED = {  # what a user must add to these files for them to be complete
    "data/files": ["data.domains.text.path=x.txt"],
    "data/hub": ["data.domains.text.path=some/dataset"],
    "width/explicit": ["width.widths=[64,64]"],
}


def composed(*overrides: str) -> schema.Config:
    with initialize_config_dir(str(CONF), version_base="1.3"):
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


def test_differences_name_keys_and_values() -> None:
    a, b = composed("width=uniform"), composed("width=ramp", "optim.lr=0.001")
    assert keys.differences(a, b, ignore=("width",)) == {"optim.lr": (0.002, 0.001)}
    assert {"width.profile", "width.start", "optim.lr"} <= keys.differences(a, b).keys()


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("optim.lr=0", "optim.lr=0.0 must be a positive"),
        ("optim.lr=nan", "optim.lr=nan must be a positive"),
        ("train.steps=-5", "train.steps=-5 must be a positive"),
        ("train.micro_batch_size=3", "does not divide train.batch_size=4"),
        ("optim.weight_decay=100", "would shrink every weight"),
        ("optim.beta2=1.0", r"outside \[0, 1\)"),
        ("seeds=[1,1]", "repeats a seed"),
        ("name=a/b", "or hold a slash"),
        ("name='..'", "begin with a dot"),
        ("data.domains.code.weight=0", "must be positive"),
        ("data.domains.code.source=files", "needs the path"),
    ],
)
def test_values_that_cannot_work_are_refused(override: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        composed(override)


def test_a_foreign_file_is_not_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load.from_file(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("- a\n- b\n")
    with pytest.raises(UserError, match="not a mapping"):
        load.from_file(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("optim: {lrr: 3}\n")
    with pytest.raises(UserError, match="lrr"):
        load.from_file(tmp_path / "config.yaml")
