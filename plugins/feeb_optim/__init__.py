"""Built-in parts: optim."""
