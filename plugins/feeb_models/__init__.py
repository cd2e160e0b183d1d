"""Built-in parts: models."""
