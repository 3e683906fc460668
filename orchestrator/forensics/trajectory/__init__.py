"""What the readings of one run say of its course: commitment to roles, speed of change, loss drops (SCIENCE §4)."""
