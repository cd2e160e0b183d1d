"""What is minimized: a folder per part or family."""
