"""`python -m orchestrator.job CELL_DIR`: run or resume one cell in this process."""

import sys

from orchestrator.jobs.worker import leave_at_once, main
from orchestrator.training import rendezvous

if __name__ == "__main__":
    code = main()
    if rendezvous.place() is not None:
        leave_at_once(code)
    sys.exit(code)
