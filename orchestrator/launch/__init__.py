"""Cells become jobs: checked, submitted to a scheduler, recorded in the event log; launching again resumes them."""
