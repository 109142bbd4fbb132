"""Hand a training run to a Ray cluster through its Jobs API and follow its log."""
