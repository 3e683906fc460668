"""Names of files of weights."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
INDEX = ".index.json"
METADATA = ".metadata"  # marks a directory of torch.distributed.checkpoint
USUAL = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
OTHERS = ("optimizer.*", "scheduler.*", "rng_state*", "training_args.*", "adapter_*")  # no weights of a model
