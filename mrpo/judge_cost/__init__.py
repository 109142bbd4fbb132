"""What the judge of a run will cost, before the run."""
