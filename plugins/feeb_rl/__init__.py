"""Built-in parts: rl."""
