"""How blocks are stacked: a folder per part or family."""
