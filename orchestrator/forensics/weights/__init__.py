"""Files → tensors: every format of checkpoint under one interface (`tensors.open_tensors`). Runs no code of theirs."""
