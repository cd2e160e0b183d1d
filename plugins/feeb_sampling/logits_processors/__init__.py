"""Logits processors: functions of logits [B,V] fp32, row by row, that always leave at least one token. A folder each."""
