"""Every measure against a reference in float64 that shares no code with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator.forensics.analyzer import analyze
from orchestrator.forensics.architecture.kinds import KINDS
from orchestrator.forensics.measures.clusters import clusters
from orchestrator.forensics.measures.stream import STREAMED  # tested in test_stream.py
from orchestrator.forensics.measures.table import MEASURES

HERE = Path(__file__).parent
OF_PAIRS = ("coupling_partners", "composition_partners", "head_clusters", "head_composition_top")  # files of their own
SPECTRAL = ("effective_rank", "stable_rank", "spectral_norm")


def _rows(path: Path, **options: Any) -> list[dict[str, Any]]:
    return [layer.measures for layer in analyze(path, **{"resamples": 2} | options).layers]


def _co_magnitude(ours: Any, layer: int) -> np.ndarray:
    gate, up = ours.folded(layer, "gate"), ours.folded(layer, "up")
    return np.array([np.sqrt(g @ g) * np.sqrt(u @ u) for g, u in zip(gate, up, strict=True)])


def _entropy(p: np.ndarray) -> float:
    p = p / p.sum()
    return float(-sum(x * np.log(x) for x in p if x > 0))


def _reference(ours: Any, layer: int, medians: dict[str, tuple[float, float]], gammas: np.ndarray) -> dict[str, float]:
    """SCIENCE §1, spelt out for one layer of a sandwich checkpoint."""
    w = {kind: ours.folded(layer, kind) for kind in KINDS}
    shape = ours.spec["layers"][layer]
    expected: dict[str, float] = {}
    stuck = []
    for kind in KINDS:
        sigma = np.linalg.svd(w[kind], compute_uv=False)
        rank = np.exp(_entropy(sigma))
        expected[f"effective_rank.{kind}"] = rank
        expected[f"effective_rank.{kind}_fraction"] = rank / min(w[kind].shape)
        expected[f"stable_rank.{kind}"] = (w[kind] ** 2).sum() / sigma[0] ** 2
        expected[f"spectral_norm.{kind}"] = sigma[0]
        first = ours.moments[f"{ours.name(layer, kind)}.exp_avg"].astype(np.float64)
        second = ours.moments[f"{ours.name(layer, kind)}.exp_avg_sq"].astype(np.float64)
        stored = ours.weight(layer, kind)
        cosine = -(first.ravel() @ stored.ravel()) / np.linalg.norm(first) / np.linalg.norm(stored)
        expected[f"momentum_alignment.{kind}"] = cosine
        expected[f"momentum_alignment.{kind}_chance"] = w[kind].size ** -0.5
        unbiased = np.abs(first) / (1 - 0.9**ours.step), np.sqrt(second / (1 - 0.95**ours.step))
        stuck.append(((unbiased[0] < 0.01 * medians[kind][0]) & (unbiased[1] < 0.01 * medians[kind][1])).ravel())
    expected["stuck_fraction"] = np.concatenate(stuck).mean()

    c = _co_magnitude(ours, layer)
    mad = np.median(np.abs(c - np.median(c)))
    expected["cv"] = np.std(c) / np.mean(c)
    expected["saturated"] = sum(c > c.mean() + 3 * c.std())
    expected["saturated_robust"] = sum(c > np.median(c) + 3 * 1.4826 * mad)
    expected["saturated_robust_fraction"] = expected["saturated_robust"] / len(c)

    energy = {kind: (w[kind] ** 2).sum() for kind in KINDS}
    attention = energy["q"] + energy["k"] + energy["v"] + energy["o"]
    expected["attention_share"] = attention / sum(energy.values())
    expected["balance"] = -abs(expected["attention_share"] - 0.4)
    hd, group = shape["head_dim"], shape["heads"] // shape["kv_heads"]
    heads = []
    for h in range(shape["heads"]):
        own, shared = slice(h * hd, (h + 1) * hd), slice(h // group * hd, (h // group + 1) * hd)
        keys_values = (w["k"][shared] ** 2).sum() + (w["v"][shared] ** 2).sum()
        heads.append((w["q"][own] ** 2).sum() + (w["o"][:, own] ** 2).sum() + keys_values / group)
    assert sum(heads) == pytest.approx(attention)
    expected["head_evenness"] = np.exp(_entropy(np.array(heads))) / shape["heads"]
    rms = {kind: np.sqrt((w[kind] ** 2).mean()) for kind in ("gate", "up", "down")}
    expected["down_ratio"] = rms["down"] / np.sqrt(rms["gate"] * rms["up"])

    gain = np.array([np.sqrt(row @ row) for row in w["down"].T]) * c
    mad = np.median(np.abs(gain - np.median(gain)))
    expected["gain_cv"] = np.std(gain) / np.mean(gain)
    expected["gain_saturated"] = sum(gain > np.median(gain) + 3 * 1.4826 * mad)
    expected["loudest_gain"] = max(gain) / np.median(gain)
    norms = {kind: np.array([np.sqrt(x @ x) for x in rows]) for kind, rows in (("gate", w["gate"]), ("up", w["up"]))}
    norms["down"] = gain / c
    expected["write_ratio"] = np.median(np.sqrt(norms["up"] * norms["down"]) / norms["gate"])

    depleted = 0
    for up, down in zip(w["up"], w["down"].T, strict=True):
        depleted += up @ down / np.linalg.norm(up) / np.linalg.norm(down) < -3 / np.sqrt(shape["width"])
    expected["depleted"], expected["depletion_fraction"] = depleted, depleted / len(c)

    logs = [np.log(np.linalg.norm(x, axis=1)) for x in (w["gate"], w["up"], w["down"].T)]
    pairs = ((w["gate"], w["up"]), (w["gate"], w["down"].T), (w["up"], w["down"].T))
    cosines = [np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1) for a, b in pairs]
    found = clusters(np.stack([*logs, *cosines], axis=1), gain)
    assert found is not None
    expected["unique_roles"] = (found.masses >= 0.005).sum()
    expected["ffn_cluster_entropy"] = _entropy(found.masses)
    expected["ffn_cluster_evidence"] = np.sqrt(found.evidence)

    of_attention = np.exp(np.mean([np.log((w[kind] ** 2).mean()) for kind in ("q", "k", "v", "o")]))
    of_ffn = np.median(np.exp(np.mean([np.log(of**2 / shape["width"]) for of in norms.values()], axis=0)))
    expected["branch_balance"] = -abs(of_attention / (of_attention + of_ffn) - 0.4)
    gamma = np.abs(ours.tensors[f"model.layers.{layer}.post_feedforward_layernorm.weight"].astype(np.float64))
    expected["post_norm_concentration"] = expected["gamma_concentration"] = 1 - np.exp(_entropy(gamma)) / len(gamma)
    expected["post_norm_damped_fraction"] = (gamma < 0.5 * np.median(gammas)).mean()
    return expected


def _across(ours: Any) -> list[dict[str, float | None]]:
    """Measures of a layer among the others: heads, composition, super weights."""
    layers = range(len(ours.spec["layers"]))
    first = ours.spec["layers"][0]["width"]
    table = ours.tensors["model.embed_tokens.weight"].astype(np.float64)[:, :first]
    prints, writes, reads, written = [], [table.T], [], []
    for i in layers:
        w, shape = {kind: ours.folded(i, kind) for kind in KINDS}, ours.spec["layers"][i]
        hd, group = shape["head_dim"], shape["heads"] // shape["kv_heads"]
        heads = []
        for h in range(shape["heads"]):
            u, _, vt = np.linalg.svd(w["o"][:, h * hd : (h + 1) * hd] @ w["v"][h // group * hd : (h // group + 1) * hd])
            heads.append((u[:, 0], vt[0]))
        prints.append(heads)
        unit = {kind: matrix / np.linalg.norm(matrix) for kind, matrix in w.items()}
        writes.append(np.concatenate([unit["o"], unit["down"]], axis=1))
        reads.append(np.concatenate([unit[kind] for kind in ("q", "k", "v", "gate", "up")]))
        written.append(np.sqrt(w["down"] ** 2 @ _co_magnitude(ours, i) ** 2))

    reads.append(ours.tensors["model.embed_tokens.weight"].astype(np.float64)[:, : w["down"].shape[0]])  # the tied head

    def match(a: Any, b: Any) -> float:
        d = min(len(a[0]), len(b[0]))
        a, b = (np.concatenate([half[:d] for half in x]) for x in (a, b))
        return float(abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b))

    def composed(writer: int, reader: int) -> float:
        d = min(len(writes[writer]), reads[reader].shape[1])
        product = reads[reader][:, :d] @ writes[writer][:d]
        return float(np.linalg.norm(product) / np.linalg.norm(reads[reader]) / np.linalg.norm(writes[writer]))

    found: list[dict[str, float | None]] = []
    for i in layers:
        pairs = [match(a, b) for x, a in enumerate(prints[i]) for y, b in enumerate(prints[i]) if x != y]
        best = [max(match(a, b) for a in prints[i] for b in prints[j]) for j in layers if j != i]
        above = [composed(i + 1, m) for m in range(i + 1, len(reads))]
        source, sink = np.mean(above), np.mean([composed(m, i) for m in range(i + 1)])
        found.append(
            {
                "head_diversity": 1 - np.mean(pairs),
                "coupling": np.mean(best),
                "source_mean": source,
                "sink_mean": sink,
                "synapse_mediator": np.sqrt(source * sink),
                "super_weight_ratio": written[i].max() / np.median(np.concatenate(written)),
            }
        )
    return found


def _medians(ours: Any) -> dict[str, tuple[float, float]]:
    """Kind → medians of the bias-corrected |m̂| and √v̂ over all layers."""
    medians = {}
    for kind in KINDS:
        names = [ours.name(layer, kind) for layer in range(len(ours.spec["layers"]))]
        first = np.concatenate([ours.moments[f"{name}.exp_avg"].astype(np.float64).ravel() for name in names])
        second = np.concatenate([ours.moments[f"{name}.exp_avg_sq"].astype(np.float64).ravel() for name in names])
        unbiased = np.abs(first) / (1 - 0.9**ours.step), np.sqrt(second / (1 - 0.95**ours.step))
        medians[kind] = (float(np.median(unbiased[0])), float(np.median(unbiased[1])))
    return medians


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"heads": 4, "kv_heads": 4, "head_dim": 4, "ffn": 17},
        {"widths": (12, 20, 16, 8), "heads": 6, "kv_heads": 2, "head_dim": 10, "ffn": 64},
    ],
)
def test_against_the_reference(checkpoint: Callable[..., Any], shape: dict[str, Any]) -> None:
    ours = checkpoint(**shape)
    for layer in range(len(ours.spec["layers"])):  # some neurons that write against what they read
        down, up = ours.tensors[ours.name(layer, "down")], ours.tensors[ours.name(layer, "up")]
        scale = ours.tensors[f"model.layers.{layer}.pre_feedforward_layernorm.weight"]
        down[:, :5] = -3 * (up * scale)[:5].T
        ours.tensors[f"model.layers.{layer}.post_feedforward_layernorm.weight"][::3] *= -1  # a scale is |γ|
    rows = _rows(ours.write())
    gammas = [np.abs(value.astype(np.float64)) for name, value in ours.tensors.items() if "post_feedforward" in name]
    assert any(row["stuck_fraction"] for row in rows)
    assert any(row["depletion_fraction"] for row in rows)
    across = _across(ours)
    for layer, row in enumerate(rows):
        expected = _reference(ours, layer, _medians(ours), np.concatenate(gammas)) | across[layer]
        for key, value in expected.items():
            tolerance = 1e-4 if key.startswith(SPECTRAL) else 1e-5
            assert row[key] == (None if value is None else pytest.approx(value, rel=tolerance, abs=1e-12)), key
        chance = {"saturated_expected", "saturated_excess", "saturated_robust_expected"}
        absent = {"saturated_fixed", "saturated_fixed_expected"} | {k for k, m in MEASURES.items() if m.needs == "A"}
        elsewhere = {*STREAMED, *OF_PAIRS} | {
            key for key in row if (HERE / f"test_{key.partition('.')[0]}.py").exists()
        }  # a file of its own
        untested = set(row) - set(expected) - chance - absent - elsewhere
        assert not untested, "give it a value in `_reference`, or a test in test_<measure>.py"


@pytest.mark.parametrize(("reach", "share"), [(3.05, 1.0), (2.95, 0.0)])
def test_depletion_begins_at_three_over_root_d(checkpoint: Callable[..., Any], reach: float, share: float) -> None:
    ours = checkpoint(widths=(16,))
    gate, up, down = (ours.tensors[ours.name(0, kind)] for kind in ("gate", "up", "down"))
    cosine = reach / np.sqrt(16)
    gate[:], up[:], down[:] = 0, 0, 0
    ours.tensors["model.layers.0.pre_feedforward_layernorm.weight"][:] = 1
    turned = np.where(np.arange(len(up)) % 2, 1, -1)  # up and down of a position: the function stays
    gate[:, 0], up[:, 0] = np.roll(turned, 7), 2 * turned
    down[0], down[1] = -cosine * turned, np.sqrt(1 - cosine**2) * turned
    (row,) = _rows(ours.write())
    assert row["depletion_fraction"] == share


def test_fixed_threshold_comes_from_the_reference_layer(checkpoint: Callable[..., Any]) -> None:
    start, end = checkpoint(path=Path("start")), checkpoint(path=Path("end"), seed=1)
    end.tensors[end.name(1, "gate")][:9] *= 30
    for layer, row in enumerate(_rows(end.write(), reference=start.write(), resamples=40)):
        before = _co_magnitude(start, layer)
        threshold = before.mean() + 3 * before.std()
        assert row["saturated_fixed"] == (_co_magnitude(end, layer) > threshold).sum()
        rng = np.random.default_rng(99)
        draws = []
        for _ in range(400):
            gate, up = (
                rng.choice(end.folded(layer, kind).ravel(), end.folded(layer, kind).shape) for kind in ("gate", "up")
            )
            draws.append((np.linalg.norm(gate, axis=1) * np.linalg.norm(up, axis=1) > threshold).sum())
        spread = 5 * np.std(draws) / np.sqrt(40) + 0.05
        assert row["saturated_fixed_expected"] == pytest.approx(np.mean(draws), abs=spread)


def test_chance_counts_agree_with_an_independent_resampling(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(widths=(16,), ffn=300)
    (row,) = _rows(ours.write(), resamples=60)
    rng = np.random.default_rng(99)
    literal, robust = [], []
    for _ in range(300):
        gate, up = (rng.choice(ours.folded(0, kind).ravel(), (300, 16)) for kind in ("gate", "up"))
        c = np.linalg.norm(gate, axis=1) * np.linalg.norm(up, axis=1)
        literal.append((c > c.mean() + 3 * c.std()).sum())
        robust.append((c > np.median(c) + 3 * 1.4826 * np.median(np.abs(c - np.median(c)))).sum())
    assert row["saturated_expected"] == pytest.approx(np.mean(literal), abs=5 * np.std(literal) / np.sqrt(60))
    assert row["saturated_robust_expected"] == pytest.approx(np.mean(robust), abs=5 * np.std(robust) / np.sqrt(60))
    assert row["saturated_excess"] == row["saturated"] - row["saturated_expected"]


def test_alignment_is_the_mean_of_the_trace_where_there_is_one(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint()
    ours.trace = {ours.name(0, "down"): [0.5, -0.2, 0.3], ours.name(2, "q"): [float("nan")]}
    rows = _rows(ours.write())
    assert rows[0]["momentum_alignment.down"] == pytest.approx(0.2)
    assert rows[2]["momentum_alignment.q"] is None
    assert rows[1]["momentum_alignment.down"] is not None


def test_alignment_is_positive_where_the_update_grows_the_weight(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint()
    name = ours.name(0, "up")
    ours.moments[f"{name}.exp_avg"] = -ours.tensors[name]  # descent adds −exp_avg
    assert _rows(ours.write())[0]["momentum_alignment.up"] == pytest.approx(1)


def test_without_moments_without_reference_without_probe(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(norm="pre")
    rows = _rows(ours.write(optimizer=False))
    for row in rows:
        absent = {key for key, value in row.items() if value is None} - {"source_mean", "synapse_mediator"}
        needed = {key.replace("*", kind) for key, m in MEASURES.items() if m.needs in "PROALG" for kind in KINDS}
        assert absent == needed - set(STREAMED)
    gamma = np.abs(ours.tensors["model.layers.0.post_attention_layernorm.weight"].astype(np.float64))
    expected = 1 - np.exp(_entropy(gamma)) / len(gamma)  # Llama's name for the FFN's pre-norm
    assert rows[0]["gamma_concentration"] == pytest.approx(expected, rel=1e-6)


def test_moments_before_the_first_update_say_nothing(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint()
    ours.moments = {name: np.zeros_like(value) for name, value in ours.moments.items()}
    for row in _rows(ours.write()):
        assert row["stuck_fraction"] is None
        assert all(row[f"momentum_alignment.{kind}"] is None for kind in KINDS)


def test_zero_matrices_are_undefined_not_zero(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint()
    for kind in KINDS:
        ours.tensors[ours.name(1, kind)][:] = 0
    row = _rows(ours.write())[1]
    undefined = (
        "cv", "gain_cv", "loudest_gain", "attention_share", "balance", "branch_balance", "head_evenness", "down_ratio",
        "write_ratio", "effective_rank.o", "stable_rank.o", "source_mean",
    )  # fmt: skip
    assert all(row[key] is None for key in undefined)
    assert row["spectral_norm.o"] == row["saturated"] == row["saturated_robust"] == row["depletion_fraction"] == 0
    assert row["gain_saturated"] == 0


def test_equal_positions_are_never_saturated(checkpoint: Callable[..., Any]) -> None:
    ours = checkpoint(ffn=37)
    for kind in ("gate", "up"):
        ours.tensors[ours.name(0, kind)][:] = 0.1
    row = _rows(ours.write())[0]
    assert row["saturated"] == row["saturated_robust"] == 0
    assert row["cv"] == pytest.approx(0, abs=1e-12)
