"""InternVL checkpoints between their custom-code layout and the native one, without running their code."""
