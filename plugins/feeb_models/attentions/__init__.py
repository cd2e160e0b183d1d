"""Token mixing: a folder per part or family."""
