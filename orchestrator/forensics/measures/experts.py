"""Experts one by one: the FFN's measures of each expert of a mixture, with the router's share (SCIENCE §1)."""

from __future__ import annotations

from concurrent.futures import Future

import torch

from orchestrator.forensics.architecture.kinds import FFN
from orchestrator.forensics.architecture.model import CheckpointModel
from orchestrator.forensics.measures.entry import Value
from orchestrator.forensics.measures.expert_report import ExpertReport
from orchestrator.forensics.measures.finding import Finding
from orchestrator.forensics.measures.pathology import findings
from orchestrator.forensics.measures.reduction import reduce_layer
from orchestrator.forensics.measures.router import router_shares
from orchestrator.forensics.measures.statistics import LayerStatistics
from orchestrator.forensics.measures.table import measure
from orchestrator.forensics.measures.workers import workers
from orchestrator.forensics.weights.memory import trim

# Measures that make sense of one expert, which compares with no other layer.
OF_MATRICES = ("effective_rank.*", "effective_rank.*_fraction", "stable_rank.*", "spectral_norm.*", "max_abs.*",
               "max_abs.*_expected")  # fmt: skip
OF_FFN = ("max_abs", "cv", "saturated", "saturated_robust", "saturated_robust_fraction", "depleted",
          "depletion_fraction", "unique_roles", "ffn_cluster_entropy", "ffn_cluster_evidence", "gain_cv",
          "gain_saturated", "loudest_gain", "write_ratio", "down_ratio")  # fmt: skip
MEASURED = frozenset(OF_FFN) | {name.replace("*", kind) for name in OF_MATRICES for kind in FFN}


def read_experts(model: CheckpointModel, device: torch.device) -> tuple[list[list[ExpertReport]], list[Finding]]:
    """Per layer, the reports of its experts, and what is out of proportion; one expert's weights in memory at a time.

    An expert's peers are the other experts of its layer.
    """
    reports: list[list[ExpertReport]] = []
    found: list[Finding] = []
    with workers() as pool:
        for index in range(len(model)):
            shares = router_shares(model, index)
            numbers: list[int | None] = []
            statistics: list[LayerStatistics] = []
            rows: list[Future[dict[str, Value]]] = []
            for expert in model.experts(index):
                numbers.append(expert.number)
                statistics.append(reduce_layer(expert, None, device, pool))
                rows.append(pool.submit(measure, statistics[-1], MEASURED))  # beside the next one's reading
                del expert
                trim()
            measured = [row.result() for row in rows]
            reports.append(
                [
                    ExpertReport(number, None if shares is None or number is None else shares[number], row)
                    for number, row in zip(numbers, measured, strict=True)
                ]
            )
            routed = [at for at, number in enumerate(numbers) if number is not None]
            found += findings(
                [measured[at] for at in routed],
                [statistics[at].names for at in routed],
                [statistics[at].uniform for at in routed],
            )
    return reports, sorted(found, key=lambda finding: -finding.ratio)
