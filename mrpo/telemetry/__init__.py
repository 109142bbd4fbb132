"""What a run tells of itself while it is under way: the table of its metrics, and the ways out for them."""
