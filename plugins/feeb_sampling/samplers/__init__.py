"""Samplers: processed logits [B,V] and the rows' random streams to tokens [B]. A folder each."""
