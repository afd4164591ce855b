"""memplan beside every published measurement with a stated card.

One table a kind, misses included, nothing fitted. `python -m benchmarks.card_truth` predicts every
row and writes the tables, the figures as csv and the picture under `benchmarks/results/`, and the
tables of `docs/card_truth.md`. `--snapshots DIR` replays a folder of PyTorch memory snapshots too.
"""
