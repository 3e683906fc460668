"""Two cells are a pair, or are refused as one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.analysis import compare
from orchestrator.analysis.cells import read_experiment
from orchestrator.analysis.comparison import compute
from orchestrator.analysis.pairs import losses, pair_up, validation_curves
from orchestrator.common.errors import UserError
from orchestrator.storage.event_log import EventLog
from tests.naming import names, naming

Write = Callable[..., Path]
Set = Callable[[Path, str, Any], None]
Edit = Callable[[Path, Callable[[list[dict[str, Any]]], Any]], None]


def test_pairs_are_baseline_by_other_by_seed(experiment: Write) -> None:
    pairs, left_out = pair_up(read_experiment(experiment(arms=("a", "b", "c"), seeds=(3, 5))))
    assert [(p.a.label, p.b.label) for p in pairs] == [
        ("a/seed=3", "b/seed=3"), ("a/seed=5", "b/seed=5"), ("a/seed=3", "c/seed=3"), ("a/seed=5", "c/seed=5"),
    ]  # fmt: skip
    assert not left_out


def test_losses_by_hand(experiment: Write, edit_metrics: Edit) -> None:
    root = experiment(steps=(0, 10, 20))
    edit_metrics(root / "uniform/seed=0", lambda r: r[1].update(heldout={"code": 1.0, "facts": 2.5}))
    edit_metrics(root / "uniform/seed=0", lambda r: r[2].update(heldout={"code": 1.5, "facts": 2.0}))
    edit_metrics(root / "uniform/seed=0", lambda r: r[2].update(test={"code": 4.0, "facts": 6.0}))
    found = losses(read_experiment(root).cell("uniform", 0), ["code", "facts"])
    assert found["test_loss", "mean"] == 5.0
    assert found["validation_loss", "code"] == 1.5
    assert (found["best_validation_loss", "code"], found["best_validation_loss", "facts"]) == (1.0, 2.0)
    assert found["best_validation_loss", "mean"] == 1.75  # of the mean's own curve, not the mean of the minima
    assert next(iter(found)) == ("test_loss", "mean")


def test_the_mean_is_of_records_that_evaluated_every_domain(experiment: Write, edit_metrics: Edit) -> None:
    root = experiment()
    edit_metrics(root / "variable/seed=0", lambda r: r[1]["heldout"].pop("facts"))
    curves = validation_curves(read_experiment(root).cell("variable", 0), ["code", "facts"])
    assert [step for step, _ in curves["code"]] == [0, 50, 100]
    assert [step for step, _ in curves["facts"]] == [0, 100]
    assert curves["mean"] == [
        (step, pytest.approx((code + facts) / 2))
        for (step, code), (_, facts) in zip(curves["code"][::2], curves["facts"], strict=True)
    ]


def test_a_failed_cell_takes_its_pair_out_with_the_reason(experiment: Write, edit_metrics: Edit) -> None:
    root = experiment()
    edit_metrics(root / "variable/seed=1", lambda r: r.pop())
    EventLog(root).append("variable/seed=1", "failed", attempt=2, reason="The training loss became nan.")
    pairs, (out,) = pair_up(read_experiment(root))
    assert [p.seed for p in pairs] == [0]
    assert (out.arm, out.seed) == ("variable", 1)
    assert names(out.reason, "variable/seed=1", "failed", "step 50", "The training loss became nan.")


def test_cells_that_never_ran_or_did_not_end(experiment: Write, edit_metrics: Edit) -> None:
    root = experiment(seeds=(0, 1, 2))
    (root / "uniform/seed=0/metrics.jsonl").unlink()
    edit_metrics(root / "variable/seed=0", lambda r: r.pop())
    pairs, left_out = pair_up(read_experiment(root))
    assert [p.seed for p in pairs] == [1, 2]
    (out,) = left_out
    assert names(out.reason, "uniform/seed=0: never started", "variable/seed=0: unfinished", "step 50")


def test_different_batches_are_refused_with_the_step(experiment: Write, edit_metrics: Edit) -> None:
    root = experiment()
    edit_metrics(root / "variable/seed=1", lambda r: [x.update(digest="other") for x in r[1:]])
    with pytest.raises(UserError, match=naming("uniform/seed=1", "variable/seed=1", "batches", "step 50")):
        pair_up(read_experiment(root))


@pytest.mark.parametrize("declared", ["data", "train", "seed"])
def test_a_declared_key_excuses_no_batches_where_the_configurations_agree_on_them(
    experiment: Write, edit_metrics: Edit, edit_config: Set, declare: Callable[..., None], declared: str
) -> None:
    root = experiment()
    declare(root, "width", declared)
    edit_config(root / "variable/seed=1", "data.cache_dir", "/elsewhere")  # where, not what
    edit_metrics(root / "variable/seed=1", lambda r: [x.update(digest="other") for x in r[1:]])
    with pytest.raises(UserError, match=naming("uniform/seed=1", "variable/seed=1", "batches", "step 50")):
        pair_up(read_experiment(root))


@pytest.mark.parametrize(
    ("key", "value", "text_too"),
    [
        ("data.train_tokens", 4096, True),
        ("data.domains.code.weight", 2.0, True),
        ("train.seq_len", 64, True),
        ("train.batch_size", 8, False),
    ],
)
def test_batches_that_differ_by_declaration_are_paired_by_seed(
    experiment: Write, edit_metrics: Edit, edit_config: Set, declare: Callable[..., None], key: str, value: Any,
    text_too: bool,
) -> None:  # fmt: skip
    root = experiment()
    declare(root, "width", key.split(".")[0])
    for seed in (0, 1):
        edit_config(root / f"variable/seed={seed}", key, value)
        edit_metrics(root / f"variable/seed={seed}", lambda r: [x.update(digest="other") for x in r])
    comparison = compute(root)
    assert len(comparison.pairs) == 2
    notes = " ".join(comparison.notes)
    assert names(notes, "batches", f"declared ({key})")
    assert (notes.count(f"({key})") == 2) == text_too, "batches, and held-out text"


def test_undeclared_differences_are_refused_by_name(experiment: Write, edit_config: Set) -> None:
    root = experiment()
    edit_config(root / "variable/seed=0", "optim.lr", 0.5)
    edit_config(root / "variable/seed=0", "train.batch_size", 8)
    with pytest.raises(UserError, match=naming("optim.lr (0.002 against 0.5)", "train.batch_size (4 against 8)")):
        pair_up(read_experiment(root))


def test_keys_left_out_of_a_configuration_have_their_defaults(experiment: Write) -> None:
    root = experiment()
    path = root / "variable/seed=0/config.yaml"
    config = json.loads(path.read_text())
    del config["optim"]["lr"]  # as one written before that key was there
    path.write_text(json.dumps(config))
    assert len(pair_up(read_experiment(root))[0]) == 2


@pytest.mark.parametrize("content", [None, "", "{model: {wid", "[1]", "optim: {lrr: 1}", "optim: {lr: fast}"])
def test_an_unusable_configuration_is_named(experiment: Write, content: str | None) -> None:
    root = experiment()
    path = root / "variable/seed=1/config.yaml"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as caught:
        compute(root)
    said = str(caught.value)
    assert names(said, path, "configuration")
    assert "\n" not in said


def bad_seed(root: Path) -> Path:
    return spec_with(root, seeds=[0, "one"])


def true_seed(root: Path) -> Path:
    return spec_with(root, seeds=[True])


def one_seed_alone(root: Path) -> Path:
    return spec_with(root, seeds=3)


def arms_in_a_list(root: Path) -> Path:
    return spec_with(root, arms=["uniform", "variable"])


def declared_word(root: Path) -> Path:
    return spec_with(root, declared="width")


def models_without_params(root: Path) -> Path:
    return spec_with(root, models={"uniform": {}})


def spec_with(root: Path, **values: Any) -> Path:
    path = root / "experiment.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))
    return path


def binary_spec(root: Path) -> Path:
    (root / "experiment.yaml").write_bytes(b"\xff\xfe\x00")
    return root / "experiment.yaml"


def empty_reading(root: Path) -> Path:
    return reading_with(root, lambda result: result.clear())


def reading_without_measures(root: Path) -> Path:
    return reading_with(root, lambda result: result["layers"][2].pop("measures"))


def reading_with_a_word(root: Path) -> Path:
    return reading_with(root, lambda result: result["layers"][2]["measures"].update(cv="high"))


def reading_with(root: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    path = root / "uniform/seed=1/forensics/step_00000050.json"
    result = json.loads(path.read_text())
    change(result)
    path.write_text(json.dumps(result))
    return path


def binary_reading(root: Path) -> Path:
    path = root / "uniform/seed=1/forensics/step_00000050.json"
    path.write_bytes(b"\xff\xfe\x00")
    return path


def shallower_reading(root: Path) -> Path:
    return reading_with(root, lambda result: result["layers"].pop()).parent


def record_without_step(root: Path) -> Path:
    path = root / "uniform/seed=1/metrics.jsonl"
    path.write_text("{}\n")
    return path


def record_without_the_decision(root: Path) -> Path:
    path = root / "uniform/seed=0/metrics.jsonl"
    records = [json.loads(line) | {"sidecar": {"values": {}}} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def record_with_a_lost_loss(root: Path) -> Path:
    path = root / "uniform/seed=1/metrics.jsonl"
    path.write_text(json.dumps({"step": 0, "digest": "", "heldout": {"code": None}}) + "\n")
    return path


def bad_event_log(root: Path) -> Path:
    (root / "events.jsonl").write_text("{}\n")
    return root / "events.jsonl"


@pytest.mark.parametrize(
    "harm",
    [
        bad_seed, true_seed, one_seed_alone, arms_in_a_list, declared_word, models_without_params, binary_spec,
        empty_reading, reading_without_measures, reading_with_a_word, binary_reading, shallower_reading,
        record_without_step, record_with_a_lost_loss, record_without_the_decision, bad_event_log,
    ],
)  # fmt: skip
def test_a_file_that_is_not_what_it_should_be_is_named(experiment: Write, harm: Callable[[Path], Path]) -> None:
    root = experiment()
    path = harm(root)
    with pytest.raises(UserError) as caught:
        compute(root)
    said = str(caught.value)
    assert said.startswith(str(path))
    assert said.endswith(".")
    assert "\n" not in said


@pytest.mark.parametrize("lost", [{"heldout": {}}, {"heldout": {"math": 1.0}, "test": {"math": 1.0}}])
def test_cells_without_a_common_domain_have_no_losses_to_compare(
    experiment: Write, edit_metrics: Edit, lost: dict[str, Any]
) -> None:
    root = experiment()
    edit_metrics(root / "variable/seed=1", lambda r: r[-1].update(lost))
    comparison = compare(root)
    assert (comparison.domains, comparison.statistics) == ([], [])
    assert any("No held-out domain" in note for note in comparison.notes)


def test_unreadable_directories_and_files_are_named(experiment: Write, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=naming(tmp_path / "nowhere")):
        read_experiment(tmp_path / "nowhere")
    root = experiment()
    broken = root / "uniform/seed=0/forensics/step_00000050.json"
    broken.write_text(broken.read_text()[:100])
    with pytest.raises(UserError, match=naming("step_00000050.json", "not JSON")):
        read_experiment(root)
    for content, reason in (("arms: {}\nseeds: [0]", "no arms"), ("[1, 2", "not YAML"), ("", "no arms")):
        (root / "experiment.yaml").write_text(content)
        with pytest.raises(UserError, match=naming(root / "experiment.yaml", reason)):
            read_experiment(root)


def test_a_torn_last_line_does_not_count(experiment: Write) -> None:
    root = experiment()
    log = root / "uniform/seed=0/metrics.jsonl"
    whole = log.read_text()
    log.write_text(whole + json.dumps({"step": 200})[:-4])
    assert len(read_experiment(root).cell("uniform", 0).metrics) == 3


def test_cells_on_other_data_are_not_pooled(experiment: Callable[..., Path]) -> None:
    path = experiment(seeds=(0, 1, 2))
    log = path / "variable/seed=1/metrics.jsonl"
    log.write_text(log.read_text().replace('"corpus"', '"another"'))
    assert {cell.label for cell in read_experiment(path).cells if cell.missing} == {"variable/seed=1"}
    spec = yaml.safe_load((path / "experiment.yaml").read_text())
    spec["data"] = {"variable": {"digest": "another", "domains": {}}}
    (path / "experiment.yaml").write_text(yaml.safe_dump(spec))
    left = {cell.label: cell.missing for cell in read_experiment(path).cells if cell.missing}
    assert left.keys() == {"variable/seed=0", "variable/seed=2"}
    assert names(left["variable/seed=0"], "corpus", "another")
