"""What a run will need before anything of it runs: who sits where, and how much memory each place takes.

Pure arithmetic over a configuration and a model's sizes: no GPU, no weights, no network, no torch.
"""
