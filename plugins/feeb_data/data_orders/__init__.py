"""Data orders, which sequence each sample of a run gets: a folder each."""
