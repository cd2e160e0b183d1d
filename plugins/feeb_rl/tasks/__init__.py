"""Tasks: a folder each."""
