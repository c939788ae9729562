"""Data generation: photos, positions and a map become addresses, captions and conversations."""
