"""Hydra's configuration tree: YAML composes, `mrpo/config/` defines."""
