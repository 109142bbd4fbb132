"""Sampling of completions with vLLM, in Ray actors."""
