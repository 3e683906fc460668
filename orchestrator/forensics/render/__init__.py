"""Readings → terminal pages, tables and figures: one (`terminal`), two (`side_by_side`), a run (`trajectory`)."""
