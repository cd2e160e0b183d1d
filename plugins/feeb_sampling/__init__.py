"""Built-in parts: sampling."""
