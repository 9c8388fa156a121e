"""What a run leaves on disk: written, read back, locked, and tied to a commit."""
