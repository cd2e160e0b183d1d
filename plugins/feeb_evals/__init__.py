"""Built-in parts: evals."""
