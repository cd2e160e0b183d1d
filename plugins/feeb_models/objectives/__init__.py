"""Training objectives: one folder per part or family."""
