"""Attacks by a file, a name or a key on whoever runs experiments, tried on real runs in processes of their own."""

from __future__ import annotations

import ast
import gzip
import os
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from submitit.slurm import slurm

from orchestrator.common.errors import UserError
from orchestrator.config import load, schema, validation
from orchestrator.forensics.weights import distributed
from tests.naming import naming
from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for package in ("orchestrator", "models", "sidecar") for path in (ROOT / package).rglob("*.py"))
KEY, NETRC_KEY, TOKEN = "c0ffee0123" * 4, "5eaf00d987" * 4, "hf_PlantedAndNeverToBeSeenOnDisk"
HOSTILE = "a b;$(touch owned) `touch owned` 'q' \"d\" & | > owned *?[z] ~ # 🜚ü"


# what the code may call

SAFE = ("SafeLoader", "CSafeLoader")
FORBIDDEN = {
    "eval", "exec", "compile", "os.system", "os.popen", "pickle.load", "pickle.loads", "cloudpickle.load", "dill.load",
    "cloudpickle.loads", "joblib.load", "shelve.open", "marshal.load", "marshal.loads", "yaml.unsafe_load",
    "yaml.full_load", "yaml.load_all", "pd.read_pickle", "pandas.read_pickle", "subprocess.getoutput",
}  # fmt: skip
IMPORTS = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "jsonpickle"}
UNPICKLER = ROOT / "orchestrator/forensics/weights/distributed.py"  # the one place, whose classes are listed


def findings(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of everything in `source` that could run what a file or a string says."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            for name in [module] if module else [alias.name for alias in node.names]:
                if name and name.partition(".")[0] in IMPORTS:
                    yield node.lineno, f"import {name}"
        if not isinstance(node, ast.Call):
            continue
        called, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        unsafe = (
            called in FORBIDDEN
            or (called == "torch.load" and given.get("weights_only") != "True")
            or (
                called.rpartition(".")[2] == "load" and called.startswith(("np.", "numpy.")) and "allow_pickle" in given
            )
            or (called == "yaml.load" and not any(loader in ast.unparse(node) for loader in SAFE))
            or ("shell" in given and given["shell"] != "False")
            or given.get("trust_remote_code", "False") != "False"
        )
        if unsafe:
            yield node.lineno, called


def test_nothing_from_a_file_is_unpickled_or_evaluated() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), what)
        for path in SOURCES
        for _, what in findings(path.read_text(encoding="utf-8"))
    }
    assert found == {(UNPICKLER.relative_to(ROOT).as_posix(), "import pickle")}
    text = UNPICKLER.read_text()
    assert text.count("pickle.") == 1, "the restricted unpickler's base class, and no pickle.load"


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')", "import pickle", "from pickle import loads", "torch.load(f)", "torch.load(f, weights_only=False)",
        "yaml.load(f)", "yaml.load(f, yaml.Loader)", "subprocess.run(c, shell=True)", "np.load(f, allow_pickle=True)",
        "AutoModel.from_pretrained(p, trust_remote_code=True)", "os.system(c)", "import dill.source",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(line: str) -> None:
    assert [*findings(line)]


ATTEMPT = """
import io, sys
from contextlib import suppress
from orchestrator.forensics.weights import distributed

def word(text): return b"X" + len(text).to_bytes(4, "little") + text.encode()

class Counting(distributed._Unpickler):
    def find_class(self, *named):
        found.append(named)
        return super().find_class(*named)

found, said, armed = [], [], False
watched = ("open", "exec", "os.", "subprocess.", "socket.", "ctypes.", "shutil.", "compile")
sys.addaudithook(lambda event, _: said.append(event) if armed and event.startswith(watched) else None)
for module, name in sorted(distributed.INERT):
    for arguments in (b")", word("touch owned") + b"\\x85", word("os") + word("touch owned") + b"\\x86"):
        call = f"c{module}\\n{name}\\n".encode() + arguments + b"R"
        state = b"}" + word("__class__") + word("touch owned") + b"s" + b"b"
        for program in (call + b".", call + state + b"."):
            armed = True
            with suppress(Exception):  # arguments that it does not take: the program ends there
                Counting(io.BytesIO(b"\\x80\\x04" + program)).load()
            armed = False
print(len(found), {*said})
"""


def test_what_a_distributed_checkpoint_may_name_runs_nothing(tmp_path: Path) -> None:
    """Each called with what an attacker would hand it, then given a state: no file, code or process comes of it."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", ATTEMPT], capture_output=True, text=True, cwd=tmp_path, env=env)
    count, events = ended.stdout.split(maxsplit=1)
    assert int(count) >= 6 * len(distributed.INERT), "every one of them was reached"
    assert events.strip() == "set()", ended.stdout
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "named",
    ["os\nsystem", "builtins\neval", "builtins\ngetattr", "torch\nload", "torch\nSize.__reduce__", "torch\nhub",
     "torch.serialization\nload", "pathlib\nPath", "collections\nOrderedDict.__init__", "pickle\nloads",
     "functools\npartial", "operator\nattrgetter", "torch\nclassproperty", "torch.storage\n_load_from_bytes"],
)  # fmt: skip
def test_a_distributed_checkpoint_may_name_nothing_else(tmp_path: Path, named: str) -> None:
    """Protocol 4 would walk a dotted name from a harmless module to a harmful one; so is it refused as a whole."""
    module, name = named.split("\n")
    words = b"".join(b"\x8c" + bytes([len(word)]) + word.encode() for word in (module, name))
    path = tmp_path / ".metadata"
    for program in (f"c{named}\n.".encode(), b"\x80\x04" + words + b"\x93."):
        path.write_bytes(program)
        with pytest.raises(UserError, match=naming(path, named.replace("\n", "."))):
            distributed.Distributed(tmp_path)


# what is said to a scheduler, and what names a directory


@pytest.mark.parametrize("bad", ["a\nb", "a\r", "a\x00b", "a\x1b[2J", "a\u2028b", "\udcff", "a/b", "..", ""])
@pytest.mark.parametrize("key", ["name", "arm"])
def test_names_that_would_break_a_job_script_are_refused(bad: str, key: str) -> None:
    config = load.from_dictconfig(_composed())
    setattr(config, key, bad)
    with pytest.raises(UserError, match=naming(repr(bad), "directory")):
        validation.validate(config)


@pytest.mark.parametrize(("key", "bad"), [("root", "out\nputs"), ("root", "out%jputs"), ("name", "50%a")])
def test_so_is_what_would_be_replaced_in_the_names_of_logs(key: str, bad: str) -> None:
    config = load.from_dictconfig(_composed())
    setattr(config, key, bad)
    with pytest.raises(UserError, match=key):
        validation.validate(config)


def _composed() -> Any:
    from omegaconf import OmegaConf

    config = schema.Config()
    config.data.domains = {"code": schema.DomainConfig()}
    config.data.cache_dir = "data"
    return OmegaConf.structured(config)


def test_submitit_quotes_what_a_name_may_hold(tmp_path: Path) -> None:
    """In the script that sbatch would get, the shell sees the names as they are and runs nothing of them."""
    folder = tmp_path / HOSTILE / "jobs"
    folder.mkdir(parents=True)
    script = slurm._make_sbatch_string(
        command="true", folder=folder, job_name=HOSTILE, partition=HOSTILE, comment=HOSTILE, use_srun=True
    )
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (fake / "srun").chmod(0o755)
    environment = {"PATH": f"{fake}:{os.environ['PATH']}"}
    shown = subprocess.run(["bash"], input=script, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert shown.stderr == ""
    assert f"{folder}/%j_%t_log.out" in shown.stdout.splitlines()
    assert not [*tmp_path.rglob("owned")]


# whole runs


@dataclass
class Ran:
    """The directory, exit code and whole output of a run."""

    base: Path
    code: int
    printed: str

    @property
    def outputs(self) -> Path:
        return self.base / "work/outputs"


def run_alone(base: Path, small: tuple[str, ...], umask: int, *more: str, **environment: str) -> Ran:
    """A tiny experiment with its own HOME, TMPDIR and working directory, and secrets planted where they are kept."""
    for folder in ("home", "tmp", "work"):
        (base / folder).mkdir(parents=True)
    (base / "home/.netrc").write_text(f"machine elsewhere.invalid\n  login user\n  password {NETRC_KEY}\n")
    env = {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": f"{base}/home", "TMPDIR": f"{base}/tmp",
        "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "WANDB_API_KEY": KEY, "HF_TOKEN": TOKEN,
    }  # fmt: skip
    tiny = [word for word in small if not word.startswith(("tracker", "data.cache_dir"))]
    command = [sys.executable, "-m", "orchestrator", *more, *tiny, "train.steps=2", "forensics.every=2"]
    ended = subprocess.run(
        command, capture_output=True, text=True, cwd=base / "work", env=env | environment, umask=umask, timeout=PATIENCE
    )
    return Ran(base, ended.returncode, ended.stdout + ended.stderr)


class Refusing(BaseHTTPRequestHandler):
    """A W&B server that takes no key; it remembers what it was sent."""

    heard: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.heard.append(str(self.headers))
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory, small_cell: tuple[str, ...]) -> Ran:
    """Names that a shell would love, cells as processes, a group that may write."""
    base = tmp_path_factory.mktemp("offline")
    experiment = {
        "name": HOSTILE, "question": HOSTILE, "arms": {HOSTILE: []}, "seeds": [0], "tracker": {"tags": [HOSTILE]}
    }  # fmt: skip
    (base / "conf/experiment").mkdir(parents=True)
    text = "# @package _global_\n" + yaml.safe_dump(experiment, allow_unicode=True)
    (base / "conf/experiment/hostile.yaml").write_text(text, encoding="utf-8")
    words = ("--config-dir", f"{base}/conf", "+experiment=hostile", "tracker=offline", "launcher=local")
    return run_alone(base, small_cell, 0o002, *words)


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory, small_cell: tuple[str, ...]) -> Iterator[Ran]:
    """A server that answers, and says no; a user whose files are nobody else's business."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    base = tmp_path_factory.mktemp("online")
    yield run_alone(base, small_cell, 0o077, "tracker=online", "launcher=debug", "name=x", WANDB_BASE_URL=url)
    server.shutdown()


@pytest.fixture(params=["offline", "online"])
def ran(request: pytest.FixtureRequest) -> Ran:
    return request.getfixturevalue(request.param)


def test_a_hostile_name_is_only_a_name(offline: Ran) -> None:
    assert offline.code == 0, offline.printed
    assert {path.name for path in offline.outputs.iterdir()} == {".data", HOSTILE}
    assert (offline.outputs / HOSTILE / HOSTILE / "seed=0/checkpoints/step_00000002/manifest.json").is_file()
    recorded = yaml.safe_load((offline.outputs / HOSTILE / "experiment.yaml").read_text(encoding="utf-8"))
    assert recorded["question"] == HOSTILE
    assert not [*offline.base.rglob("owned")]


def test_training_goes_on_where_the_key_is_refused(online: Ran) -> None:
    import base64

    assert online.code == 0, online.printed
    sent = base64.b64encode(f"api:{KEY}".encode()).decode()
    assert any(sent in heard or KEY in heard for heard in Refusing.heard), "W&B did use the planted key"


def contents(path: Path) -> Iterator[bytes]:
    """The bytes of a file, and of what is packed in it."""
    raw = path.read_bytes()
    yield raw
    if raw[:2] == b"\x1f\x8b":
        yield gzip.decompress(raw)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name) for name in archive.namelist())


def test_no_key_reaches_a_file_or_the_terminal(ran: Ran) -> None:
    for secret in (KEY, NETRC_KEY, TOKEN):
        assert secret not in ran.printed
        for path in ran.base.rglob("*"):
            if path.is_file() and path != ran.base / "home/.netrc":
                assert not any(secret.encode() in content for content in contents(path)), path


def test_nothing_is_written_outside_the_outputs(ran: Ran) -> None:
    assert [path.name for path in (ran.base / "home").rglob("*")] == [".netrc"]
    assert not [*(ran.base / "tmp").rglob("*")]
    assert [path.name for path in (ran.base / "work").iterdir()] == ["outputs"]


def test_every_file_has_the_permissions_of_the_umask(ran: Ran, request: pytest.FixtureRequest) -> None:
    umask = 0o002 if "offline" in request.node.callspec.id else 0o077
    for path in ran.outputs.rglob("*"):
        if not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o777 if path.is_dir() else 0o666) & ~umask, (oct(mode), path)
