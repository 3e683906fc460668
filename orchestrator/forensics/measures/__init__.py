"""A layer's matrices → its statistics (`statistics`) → its measures (`table`)."""
