"""The course of one run, by its readings: commitment to roles, speed of change, loss drops (SCIENCE §4)."""
