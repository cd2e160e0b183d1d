"""Sources of documents: a folder each. What they share: text_options.py, python_text.py."""
