"""Every key of the configuration, its type, its default and its meaning.

Hydra composes `conf/` onto these dataclasses and refuses a misspelt key or a value of the wrong type. `validation`
checks what types cannot express. `docs/keys.md` is made of this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from orchestrator.config.edits import EditName

Norm = StrEnum("Norm", ["pre", "sandwich"])
HeadFit = StrEnum("HeadFit", ["exact", "nearest", "equal"])
Profile = StrEnum("Profile", ["uniform", "ramp", "x_shape", "explicit"])
Match = StrEnum("Match", ["none", "params", "flops"])
Source = StrEnum("Source", ["builtin", "files", "hub"])
TokenizerKind = StrEnum("TokenizerKind", ["byte", "bpe", "hf"])
Schedule = StrEnum("Schedule", ["cosine", "wsd", "constant"])
Decay = StrEnum("Decay", ["decoupled", "cautious"])
Device = StrEnum("Device", ["auto", "cpu", "cuda"])
Precision = StrEnum("Precision", ["auto", "fp32", "bf16"])
SidecarMode = StrEnum("SidecarMode", ["off", "learn", "rule", "replay", "permute", "random", "fixed"])
Share = StrEnum("Share", ["none", "kind", "layer", "all"])
Credit = StrEnum("Credit", ["joint", "factored", "forks"])
Trace = StrEnum("Trace", ["interval", "run"])
PolicyKind = StrEnum("PolicyKind", ["linear", "mlp"])
SearchMethod = StrEnum("SearchMethod", ["tpe", "random", "grid", "reinforce"])
Scoring = StrEnum("Scoring", ["calibrated", "paper"])
Where = StrEnum("Where", ["inline", "job"])
TrackerMode = StrEnum("TrackerMode", ["offline", "online", "off"])
AUTO = "auto"  # of `seeds`
Gpu = StrEnum("Gpu", ["a100", "h100", "h200", "b200", "l40s", "rtx4090", "mi300x"])


@dataclass
class ModelConfig:
    """The decoder. One shape per layer follows from these and from `WidthConfig`."""

    layers: int = 11  # decoder layers
    width: int = 64  # residual width of the uniform profile; other profiles are sized against it
    head_dim: int = 16  # width of one attention head; even, for RoPE
    heads: HeadFit = HeadFit.exact  # width/head_dim: exact: whole · nearest: rounded · equal: as many in every layer
    queries_per_kv: int = 1  # grouped-query attention: query heads that share one key/value head
    ffn_ratio: float = 3.0  # FFN positions per unit of width
    vocab_size: int = 264  # rows of the embedding; at least the tokenizer's vocabulary
    norm: Norm = Norm.sandwich  # pre: RMSNorm before each sublayer · sandwich: also after it
    tie_embeddings: bool = True  # the output layer shares the weights of the input embedding
    rope_theta: float = 10_000.0  # base of the rotary position embedding
    norm_eps: float = 1e-6  # added to the mean square in RMSNorm
    match: Match = Match.params  # what `width.match` defaults to with this model


@dataclass
class WidthConfig:
    """The width of each layer (SCIENCE §7). Ratios are relative to `model.width`."""

    profile: Profile = Profile.uniform  # how the width changes from layer to layer
    start: float = 1.0  # ramp: width of layer 0 · x_shape: width at both ends
    end: float = 1.0  # ramp: width of the last layer · x_shape: width at its narrowest, three quarters down
    widths: list[int] | None = None  # explicit: one width per layer
    multiple_of: int | None = None  # of widths; null: whole heads; with heads=nearest 4, with heads=equal 2 per head
    match: Match = Match.none  # scale the profile until it costs what uniform at model.width costs


@dataclass
class DomainConfig:
    """One source of text with its own held-out loss."""

    source: Source = Source.builtin  # where the text comes from
    weight: float = 1.0  # share of training tokens, relative to the other domains
    path: str | None = None  # builtin: code|prose|facts|math, default the domain's name · files: path, glob · hub: path
    name: str | None = None  # hub: configuration name
    split: str = "train"  # hub: split
    column: str = "text"  # jsonl, csv, parquet, hub: the column that holds the text
    streaming: bool = False  # hub: read as a stream; needs data.train_tokens


@dataclass
class TokenizerConfig:
    kind: TokenizerKind = TokenizerKind.byte  # byte: a token per byte · bpe: trained on the data · hf: from path
    vocab_size: int = 4096  # bpe: size to train
    path: str | None = None  # hf: name or folder of any transformers tokenizer


@dataclass
class DataConfig:
    domains: dict[str, DomainConfig] = field(default_factory=dict)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    train_tokens: int | None = None  # cap of training tokens per domain; null: everything
    heldout_tokens: int = 8192  # size of each of reward, validation and test, per domain
    cache_dir: str = "${root}/.data"  # folder of the tokenized corpora


@dataclass
class OptimConfig:
    lr: float = 2e-3  # peak learning rate
    layer_lr: dict[str, Any] = field(default_factory=dict)  # term → coefficient: a factor of lr for each layer
    weight_decay: float = 0.1  # of the matrices
    decay: Decay = Decay.decoupled  # cautious: a weight decays only where the step does not lead away from zero
    beta1: float = 0.9  # AdamW's decay of the first moment
    beta2: float = 0.95  # AdamW's decay of the second moment
    eps: float = 1e-8  # added to AdamW's denominator
    clip: float = 1.0  # largest global gradient norm
    schedule: Schedule = Schedule.cosine  # of the learning rate after the warm-up; wsd: lr, then a linear fall
    warmup_steps: int = 50  # steps in which the learning rate rises linearly to lr
    min_lr_ratio: float = 0.1  # final learning rate over the peak
    decay_fraction: float = 0.2  # wsd: share of the run that decays


@dataclass
class SidecarConfig:
    """The policy beside the optimizer (SCIENCE §6)."""

    mode: SidecarMode = SidecarMode.off  # rule: by `rule` · replay, permute, random: play `needs` or `coefficients`
    channels: list[str] = field(default_factory=lambda: ["decay"])  # names in sidecar.channels.CHANNELS: decay, …
    interval: int = 20  # steps between two decisions
    reward_rows: int | None = None  # judging rows over all domains; null: half a batch, or one of each domain
    credit: Credit = Credit.factored  # factored: a held-out backward pass · joint: one reward · forks: of the run
    unexplained: float = 1.0  # factored: weight of REINFORCE on the reward that the backward pass leaves unexplained
    rule: str = "alpha_decay"  # mode=rule: what computes the multipliers from the weights: sidecar/rules.py
    trace: Trace = Trace.interval  # factored: a multiplier's effect on the weights in an interval, or in the run
    horizon: float = 1.0  # forks: steps that each trains ahead, in units of 1/(optim.lr·optim.weight_decay)
    pairs: int = 2  # forks: antithetic pairs at every decision
    share: Share = Share.none  # units that share one multiplier; played back, it is the mean of theirs
    features: list[str] = field(default_factory=lambda: ["unit"])  # inputs of the policy: sidecar/features.py
    policy: PolicyKind = PolicyKind.linear  # what maps the features to multipliers
    sigma: float = 0.3  # initial std of the log-multipliers
    policy_lr: float = 0.5  # learning rate of the policy
    entropy: float = 0.001  # weight of the bonus for entropy
    baseline_decay: float = 0.8  # of the average reward: share of the old value that each interval keeps
    warmup: int = 3  # first intervals, without reward, since the loss falls there in any case
    bounds: dict[str, Any] = field(default_factory=dict)  # channel → [least, largest multiplier]
    lr_max: float = 0.02  # largest learning rate that lr_scale may reach
    coefficients: dict[str, Any] = field(default_factory=dict)  # channel → {term: coefficient}; forks learn them
    mean_matched: bool = False  # the parameter-weighted mean multiplier of a channel is 1


@dataclass
class TrainConfig:
    steps: int = 800  # optimizer steps; a later launch may raise it, and training goes on
    batch_size: int = 4  # sequences per optimizer step
    micro_batch_size: int | None = None  # sequences per forward pass; null: the whole batch
    seq_len: int = 128  # tokens per sequence
    log_every: int = 10  # steps between two records of the training loss
    eval_every: int = 50  # steps between two held-out losses
    checkpoint_every: int = 200  # steps between two checkpoints
    keep_checkpoints: int | None = None  # newest checkpoints to keep (step 0 always stays); null: all
    keep_states: int | None = 2  # newest that keep the state to resume from; older ones keep weights; null: all
    keep_at: list[int] = field(default_factory=list)  # steps also saved, for good and with state; branches add theirs
    device: Device = Device.auto  # auto: a GPU where there is one, else the CPU
    precision: Precision = Precision.auto  # auto: bf16 on a GPU, fp32 on CPU; masters are fp32 either way
    compile: bool = False  # torch.compile each layer (equal shapes once) and a large head's softmax; meant for GPUs
    threads: int = 1  # CPU threads of one cell
    init_stream: int = 0  # draws other initial weights of the same seed; two arms that differ in it alone are equal
    init_from: str | None = None  # checkpoint whose weights it begins with, ours or Llama-shaped; null: random weights


@dataclass
class BranchConfig:
    """The cell of the same seed whose state at one step this one begins from (docs/first-experiment.md)."""

    arm: str | None = None  # the arm that is the trunk; null: no trunk, training begins at step 0
    step: int | None = None  # step of the trunk at which the branch begins
    experiment: str | None = None  # directory of the trunk's experiment; null: this one


@dataclass
class ForensicsConfig:
    every: int = 200  # steps between readings; each reading is of a checkpoint on disk
    early: bool = False  # also read, and measure held-out loss, at the powers of two below `every`: steps 1, 2, 4, 8, …
    where: Where = Where.inline  # inline: a thread of the training process · job: a job of its own beside it
    scoring: Scoring = Scoring.calibrated  # calibrated: against the null (SCIENCE §3) · paper: the paper's rule
    trace_steps: int = 8  # steps before each reading in which momentum is recorded
    resamples: int = 10  # number of draws of the null (SCIENCE §3)


@dataclass
class InterventionsConfig:
    """Interventions on checkpoints while training goes on, made by whoever makes their readings (SCIENCE §9)."""

    every: int | None = None  # steps between two, a multiple of forensics.every; null: none
    edits: list[EditName] = field(default_factory=lambda: [EditName.delete])  # what is done to each layer
    documents: int = 16  # most held-out rows of each domain


@dataclass
class SlurmConfig:
    """The options of a cell's Slurm job; null leaves one to the cluster, and `options` takes any other."""

    partition: str | None = None  # of the cells' jobs
    account: str | None = None  # account to charge
    qos: str | None = None  # quality of service of the cells' jobs
    constraint: str | None = None  # features that a node must have
    nodes: int = 1  # per cell; launcher.ranks is a multiple of it
    gpus: int = 0  # per rank
    cpus: int | None = None  # per rank; null: train.threads, and one for readings in the same process
    memory_gb: float | None = None  # per node
    array: bool = True  # submit the cells as tasks of one array, launcher.parallel of them at once
    warning_seconds: int = 120  # before the time limit; long enough for a step and a checkpoint
    setup: list[str] = field(default_factory=list)  # shell lines that run first: module load cuda
    options: dict[str, Any] = field(default_factory=dict)  # any of sbatch's: {exclude: n7, mail-type: FAIL}
    side_partition: str | None = None  # of jobs that read layers or compare; null: partition
    side_qos: str | None = None  # of jobs that read layers or compare; null: qos
    side_memory_gb: float | None = None  # of a reading or comparison: the largest layer and two copies of a matrix
    side_nice: int = 1000  # lowers the priority of readings


@dataclass
class LauncherConfig:
    kind: str = "local"  # one of `schedulers.SCHEDULERS`, which a launch checks
    parallel: int | None = None  # cells at once; null: one per GPU, or one per CPU core; on Slurm all
    ranks: int = 1  # processes that train one cell, each on its own GPU or core
    timeout_hours: float = 720.0  # of one job; on Slurm a longer cell resumes when its job is requeued
    retries: int = 2  # of a cell that dies, counted anew after each new checkpoint
    backoff_seconds: float = 10.0  # before the first retry; doubles with each
    wait: bool = True  # slurm: watch the jobs until they have ended; false: submit and return
    slurm: SlurmConfig = field(default_factory=SlurmConfig)


@dataclass
class TrackerConfig:
    mode: TrackerMode = TrackerMode.offline  # offline: on disk, without an account · online: needs `wandb login`
    project: str = "layer-roles"  # W&B project
    entity: str | None = None  # W&B user or team; null: the login's own
    dir: str | None = None  # folder of W&B's files, for all runs; null: each in its own cell's directory
    tags: list[str] = field(default_factory=list)  # of the runs; a multirun adds its name and the overrides it varies


@dataclass
class NotifyConfig:
    """Notices of an experiment's end, and of each cell that fails for good (docs/first-experiment.md)."""

    command: str | None = None  # a line for the shell: the notice is JSON on its stdin, and in LAYER_ROLES_… variables
    webhook: str | None = None  # http(s) address to which it is posted as JSON, as Slack and others take it


@dataclass
class DecideConfig:
    """The rule by which a question is decided (SCIENCE §8); `seeds: auto` adds pairs until the loss of each arm is."""

    margin: float = 0.0025  # share of the baseline's loss within which a difference counts as none
    min: int = 7  # seeds: auto: pairs at the first look; where twelve may come, six cannot decide yet
    max: int = 12  # seeds: auto: most pairs; it may be raised later
    step: int = 1  # seeds: auto: pairs between two looks


@dataclass
class BudgetConfig:
    """A cap on what an experiment may take, its search included: at the cap, no more cells start. Null: no cap."""

    core_hours: float | None = None  # of CPU cores, for cells without a GPU
    gpu_hours: float | None = None  # of GPUs
    money: float | None = None  # at `price`
    price: float | None = None  # of an hour: of a GPU, and of a core of cells without one


@dataclass
class SearchConfig:
    """Settings that are explored at one seed; the best are compared with the baseline at others (docs/search.md)."""

    space: dict[str, Any] = field(default_factory=dict)  # key → log(1e-4, 1e-2), uniform(…), int(…) or a list
    method: SearchMethod = SearchMethod.tpe  # who proposes; reinforce: a policy whose episodes are whole runs
    trials: int = 12  # settings to try beside the baseline; a later launch may raise it
    batch: int = 4  # settings that are proposed together; the losses of a batch guide the next one
    lengths: list[float] = field(default_factory=lambda: [0.25, 0.5, 1.0])  # of a trial's runs, shares of train.steps
    keep: float = 0.5  # share of the trials that go on to the next length
    finalists: int = 1  # best settings that become arms
    seed: int = 1_000_000  # of the explored runs; no pair may have it
    sigma: float = 0.5  # reinforce: how far it tries from the middle of a range, and then from its mean, in half-ranges
    rate: float = 0.6  # reinforce: how far its mean moves for batch k, over √k, as a share of sigma


@dataclass
class PlanConfig:
    """The hardware that `dry_run=true` assumes. Only the plan depends on it."""

    gpu: Gpu | None = None  # one per rank, launcher.parallel cells at once, else all; null: this machine, timed
    mfu: float = 0.35  # share of the GPU's dense bf16 peak that forward and backward reach


@dataclass
class Config:
    """One experiment, or one cell of it when `arm` is set."""

    name: str | None = None  # of the experiment, whose directory is <root>/<name>
    question: str = ""  # what the experiment asks; the head of its report
    arms: dict[str, list[str]] = field(default_factory=dict)  # arm → Hydra overrides; the first is the baseline
    seeds: Any = field(default_factory=list)  # every arm is trained at each of these; auto: as many as decide
    decide: DecideConfig = field(default_factory=DecideConfig)
    dropped: list[str] | None = None  # arms that are neither trained nor compared any more; null: as the last launch
    declared: list[str] = field(default_factory=list)  # the only keys in which arms may differ
    contrasts: dict[str, dict[str, Any]] = field(default_factory=dict)  # name → {arm: weight}, tested in this order
    expect: dict[str, Any] = field(default_factory=dict)  # {arm: {late: specialist}}: experiments/expectations.py
    arm: str = "main"  # name of the only arm, where `arms` is empty
    seed: int = 0  # seed of the only cell, where `seeds` is empty
    needs: str | None = None  # whose result it waits for: <arm>, <arm>@next (seed), or a cell's path with a slash in it
    root: str = "outputs"  # folder of all experiments
    dry_run: bool = False  # print the plan and its cost, and train nothing
    model: ModelConfig = field(default_factory=ModelConfig)
    width: WidthConfig = field(default_factory=WidthConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sidecar: SidecarConfig = field(default_factory=SidecarConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    branch: BranchConfig = field(default_factory=BranchConfig)
    forensics: ForensicsConfig = field(default_factory=ForensicsConfig)
    interventions: InterventionsConfig = field(default_factory=InterventionsConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    notify: NotifyConfig = field(default_factory=NotifyConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
