"""Checkpoints and run folders: written atomically, read as untrusted input."""
