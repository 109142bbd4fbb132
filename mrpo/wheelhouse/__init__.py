"""What an installation downloads, for a host without internet: wheels in parts of a chosen size, with hashes.

Standard library alone: both ends of it run before anything is installed.
"""
