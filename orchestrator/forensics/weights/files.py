"""Names of files of weights."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
GGUF = ".gguf"
INDEX = ".index.json"
STEPS = ("iter_num", "global_step")  # beside the weights in one file: nanoGPT's, and Lightning's
METADATA = ".metadata"  # marks a directory of torch.distributed.checkpoint
USUAL = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")  # as PEFT names them
OTHERS = (  # no weights of a model
    "optimizer.*", "scheduler.*", "rng_state*", "training_args.*", "adapter_*", "mmproj*", "imatrix*",
)  # fmt: skip
