"""Built-in parts: tracking."""
