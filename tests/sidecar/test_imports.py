"""The sidecar is for anybody's loop: it needs torch and numpy, and nothing else that is not Python's own."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]

CODE = """
import sys

allowed, finders = {*sys.stdlib_module_names, "sidecar", "functorch", "torchgen", *NEEDED}, sys.meta_path[:]

class Only:
    # Everything else is as if it were not installed.
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in allowed or name.startswith("_sysconfigdata"):
            return next((spec for finder in finders if (spec := finder.find_spec(name, path, target))), None)

sys.meta_path[:] = [Only()]
try:
    import omegaconf
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("nothing is forbidden")
import torch
from sidecar import Sidecar

model = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(2)))

def loss(interval):
    x = torch.ones(3, 4)
    for layer in model:
        x = x + layer(x)
    return x.square().mean()

sidecar = Sidecar(model, loss, lr=1e-3, weight_decay=0.1, seed=0, channels=["decay", "lr_scale"], interval=1, warmup=0)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(4):
    sidecar.before_step(step)
    optimizer.zero_grad()
    loss(0).backward()
    with sidecar.applied(1e-3):
        optimizer.step()
"""


def required_by(name: str, known: set[str]) -> set[str]:
    """`name` and the packages that it requires, directly or not; optional ones left out."""
    if name in known:
        return known
    known.add(name)
    try:
        requirements = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:  # of another platform
        return known
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            known |= required_by(requirement.name, known)
    return known


def test_the_sidecar_needs_torch_and_numpy_alone() -> None:
    needed = {name.replace("-", "_") for name in required_by("torch", {"numpy"})}
    assert not needed & {"hydra_core", "omegaconf", "transformers", "scipy", "pandas", "safetensors", "orchestrator"}
    done = subprocess.run(
        [sys.executable, "-c", f"NEEDED = {needed}\n{CODE}"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
