"""Nested content that cannot be, in every file of an experiment: one sentence, exit code 2, nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.analysis import comparison
from orchestrator.analysis.survey import survey
from orchestrator.compare import main
from tests.naming import names

Write = Callable[..., Path]
Harm = Callable[[Path], Any]
HUGE, NAN, INF = 10**400, float("nan"), float("inf")
TENSOR = "model.layers.0.mlp.down_proj.weight"
ENTRY = {"time": "t", "cell": "variable/seed=0", "state": "done", "attempt": 1, "job": "", "reason": ""}


def reading(change: Callable[[dict[str, Any]], Any]) -> Harm:
    def harm(root: Path) -> None:
        path = root / "variable/seed=0/forensics/step_00000100.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return harm


def top(**values: Any) -> Harm:
    return reading(lambda r: r.update(values))


def layer(**values: Any) -> Harm:
    return reading(lambda r: r["layers"][1].update(values))


def measure(name: str, value: Any) -> Harm:
    return reading(lambda r: r["layers"][1]["measures"].update({name: value}))


def finding(**values: Any) -> Harm:
    return top(pathology=[{"tensor": TENSOR, "ratio": 12.0, "severity": "warn"} | values])


def metrics(change: Callable[[list[dict[str, Any]]], Any]) -> Harm:
    def harm(root: Path) -> None:
        path = root / "variable/seed=0/metrics.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        change(records)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))

    return harm


def last(**values: Any) -> Harm:
    return metrics(lambda r: r[-1].update(values))


def decided(*, values: Any = None, at: int = 1, **more: Any) -> Harm:
    """A sidecar in every record; in the one `at`, it held these values."""
    whole = {"step": 0, "evaluations": 2, "backwards": 1, "values": {"decay": {TENSOR: 1.0}}}

    def change(records: list[dict[str, Any]]) -> None:
        for index, record in enumerate(records):
            record["sidecar"] = whole | ({"values": values or whole["values"]} | more if index == at else {})

    return metrics(change)


def undecided(key: str) -> Harm:
    def change(records: list[dict[str, Any]]) -> None:
        records[-1]["sidecar"] = {"step": 0, "evaluations": 2, "backwards": 1, "values": {}}
        del records[-1]["sidecar"][key]

    return metrics(change)


def spec(**values: Any) -> Harm:
    def harm(root: Path) -> None:
        path = root / "experiment.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values, sort_keys=False))

    return harm


def model(**values: Any) -> Harm:
    return spec(models={"uniform": {"params": 1} | values})


def written(name: str, content: str | bytes) -> Harm:
    return lambda root: (root / name).write_bytes(content.encode() if isinstance(content, str) else content)


def added(line: str) -> Harm:
    def harm(root: Path) -> None:
        with (root / "experiment.yaml").open("a") as file:
            file.write(f"\n{line}\n")

    return harm


def entry(**values: Any) -> Harm:
    return written("events.jsonl", json.dumps(ENTRY | values) + "\n")


def contrast(name: Any = "c", **weights: Any) -> Harm:
    return spec(contrasts={name: {"uniform": 1, "variable": -1} | weights})


READING, METRICS = "variable/seed=0/forensics/step_00000100.json", "variable/seed=0/metrics.jsonl"
HOSTILE: dict[str, tuple[Harm, str]] = {
    "finding empty": (top(pathology=[{}]), "pathology.0 has no 'tensor'"),
    "finding is a word": (top(pathology=["x"]), "pathology.0 is not a mapping"),
    "finding's tensor": (finding(tensor=None), "tensor = None"),
    "finding's ratio is a word": (finding(ratio="x"), "ratio = 'x'"),
    "finding's ratio NaN": (finding(ratio=NAN), "ratio = nan"),
    "finding's severity": (finding(severity=3), "severity = 3"),
    "measure NaN": (measure("cv", NAN), "cv = nan"),
    "measure infinite": (measure("attention_share", -INF), "attention_share = -inf"),
    "measure huge": (measure("cv", HUGE), "cv = 1000"),
    "measure a mapping": (measure("cv", {}), "cv = {}"),
    "measure true": (measure("cv", True), "cv = True"),
    "count NaN": (measure("saturated_robust", NAN), "saturated_robust = nan"),
    "count negative": (measure("saturated_robust", -100), "saturated_robust = -100"),
    "count vanishes": (measure("saturated_robust", 1e-320), "saturated_robust = 1e-320"),
    "expected count NaN": (measure("saturated_expected", NAN), "saturated_expected = nan"),
    "expected count negative": (measure("saturated_fixed_expected", -0.5), "saturated_fixed_expected = -0.5"),
    "total": (top(totals={"saturated": "x"}), "saturated = 'x'"),
    "margin NaN": (layer(margin=NAN), "margin = nan"),
    "width NaN": (layer(width=NAN), "width = nan"),
    "width 0": (layer(width=0), "width = 0"),
    "scores empty": (layer(scores={}), "scores has no 'hub'"),
    "score infinite": (layer(scores=dict.fromkeys(("hub", "damper", "passthrough", "specialist"), INF)), "hub = inf"),
    "role unknown": (layer(role="wizard"), "role = 'wizard'"),
    "role a tie with itself": (layer(role="hub/hub"), "role = 'hub/hub'"),
    "role a list": (layer(role=["hub"]), "role = ['hub']"),
    "layer twice": (layer(layer=2), "layers.1 calls itself layer 2"),
    "layer negative": (layer(layer=-5), "layer = -5"),
    "layers in another order": (reading(lambda r: r["layers"].reverse()), "layers.0 calls itself layer 3"),
    "step negative": (top(step=-5), "step = -5"),
    "step another": (top(step=77), "its step is 77"),
    "reading nested": (written(READING, "[" * 100_000), "is not JSON"),
    "reading of many digits": (written(READING, '{"step": ' + "9" * 5000 + "}"), "is not JSON"),
    "reading empty": (written(READING, "{}"), "its content has no"),
    **{
        f"{split} {value!r:.9}": (last(**{split: value}), f"{split} ")
        for split in ("heldout", "test")
        for value in (None, 5, ["code"], [["code"]], {"code": None}, {"code": HUGE}, {"code": 1.7e308})
    },
    "loss NaN": (last(test={"code": NAN}), "NaN is not a JSON number"),
    "loss infinite": (last(test={"code": INF}), "Infinity is not a JSON number"),
    "loss beyond floats": (written(METRICS, '{"step": 0, "digest": "", "test": {"code": 1e999}}\n'), "code = inf"),
    "step repeated": (metrics(lambda r: r.insert(1, r[0])), "step 0 follows step 0"),
    "steps descending": (metrics(lambda r: r[0].update(step=90)), "step 50 follows step 90"),
    "step huge": (metrics(lambda r: r[-1].update(step=HUGE)), "step = 1000"),
    "metrics log nested": (written(METRICS, '{"a":' * 100_000 + "\n{}\n"), "line 1 is not a JSON object"),
    **{f"no {key}": (undecided(key), f"sidecar has no '{key}'") for key in ("evaluations", "backwards", "values")},
    "evaluations a word": (decided(evaluations="a"), "evaluations = 'a'"),
    "backwards negative": (decided(backwards=-1), "backwards = -1"),
    "fork steps a word": (decided(fork_steps="a"), "fork_steps = 'a'"),
    "differences a word": (decided(differences="a"), "differences = 'a'"),
    "a difference of three horizons": (decided(differences=[[1, 2, 3]]), "differences.0 is not of two horizons"),
    "a difference a word": (decided(differences=[[1, "a"]]), "'a'"),
    "values a word": (decided(values={"decay": "x"}), "sidecar.values.decay is not a mapping"),
    "no unit": (decided(values={"decay": {}}, at=0), "sidecar.values.decay has no unit"),
    **{
        f"multiplier {value}": (decided(values={"decay": {TENSOR: value}}), f"{TENSOR} = {value!r}")
        for value in (None, -1, 0, "x")
    },
    "units change": (decided(values={"decay": {"other": 1.0}}), "units at step 50 are not those of its first"),
    "channels change": (decided(values={"lr": {TENSOR: 1.0}}), "units at step 50 are not those of its first"),
    "no date": (lambda root: (root / "experiment.yaml").write_text("name: 2024-13-45\n"), "month must be in 1..12"),
    "digits": (added("x: " + "9" * 5000), "is not YAML"),
    "hexadecimal digits": (added("machine: {a: 0x" + "f" * 5000 + "}"), "is not YAML"),
    "mapping in itself": (added("machine: &a {b: *a}"), "is not YAML"),
    "tag of another type": (added("x: !!bool perhaps"), "is not YAML"),
    "machine NaN": (added("machine: {a: .nan}"), "is not YAML"),
    "yaml nested": (written("experiment.yaml", "[" * 3_000 + "]" * 3_000), "is not YAML"),
    "seed six times": (spec(seeds=[0] * 6), "seeds has 0 more than once"),
    "seed negative": (spec(seeds=[-1, 0]), "0 = -1"),
    "params 0": (model(params=0), "params = 0"),
    "params huge": (model(params=HUGE), "params = 1000"),
    **{f"widths {value}": (model(widths=value), "widths has 0 = ") for value in ([None, 3], [[1], 3], [0])},
    "training_flops": (model(training_flops=-1.0), "training_flops = -1.0"),
    "weights overflow": (contrast(uniform=1e308, variable=-1e308), "the weight 1e+308"),
    "weight huge": (contrast(uniform=HUGE, variable=-HUGE), "the weight 1000"),
    "weight vanishes": (contrast(uniform=1e-320, variable=-1e-320), "the weight 1e-320"),
    "contrast has a number": (contrast(3), "3 is not a name"),
    "expect above floats": (spec(expect={"centre": "> 1e999"}), "is not a comparison"),
    "expect below more": (spec(expect={"hubs": "<= 1e999"}), "is not a comparison"),
    "expect a range": (spec(expect={"hubs": "0.2 ... 1e999"}), "is not a comparison"),
    "expect huge": (spec(expect={"hubs": [0.2, HUGE]}), "is not a comparison"),
    "expect many layers": (spec(expect={"L0-L" + "9" * 5000: "hub"}), "is not a line"),
    "event log's cell": (entry(cell=[1]), "cell is [1]"),
    "event log's state": (entry(state=7), "state is 7"),
    "event log's attempt": (entry(attempt=[]), "attempt is []"),
    "event log nested": (written("events.jsonl", "[" * 100_000 + "\n"), "line 1 is not a JSON object"),
    "event log's environment NaN": (entry(environment={"threads": NAN}), "NaN is not a JSON number"),
}  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", HOSTILE)
def test_content_that_cannot_be_is_one_sentence(
    experiment: Write, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    root = experiment()
    harm, reason = HOSTILE[name]
    harm(root)
    assert main([str(root)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert reason in said.err
    assert str(root) in said.err
    assert not (root / "comparison").exists()


def test_what_cannot_be_in_one_costs_the_others_nothing(experiment: Write) -> None:
    broken, whole = experiment(name="broken"), experiment()
    last(heldout=None)(broken)
    second, third, first = survey([broken, whole])
    assert names(first.problem, "heldout", "mapping")
    assert [(one.arm, one.n, one.problem) for one in (second, third)] == [("variable", 2, None), ("uniform", 2, None)]


def test_a_fault_of_ours_in_one_costs_the_others_nothing(experiment: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    faulty, whole = experiment(name="faulty"), experiment()
    compute = comparison.compute

    def fails(path: Path) -> Any:
        return compute(path) if path == whole else 1 // 0

    monkeypatch.setattr("orchestrator.analysis.survey.compute", fails)
    second, third, first = survey([faulty, whole])
    assert names(first.problem, faulty, "ZeroDivisionError")
    assert second.problem is third.problem is None
