"""Built-in parts: data."""
