"""The comparison's experiments, made of files alone, serve here too."""

from tests.orchestrator.analysis.conftest import declare, edit_config, edit_metrics, experiment, reading

__all__ = ["declare", "edit_config", "edit_metrics", "experiment", "reading"]
