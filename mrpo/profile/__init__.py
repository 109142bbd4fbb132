"""`make profile`: what the time of a few training steps goes into."""
