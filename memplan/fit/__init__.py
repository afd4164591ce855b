"""Memory versus batch, as a program fitted to tapes recorded at a few batches."""
