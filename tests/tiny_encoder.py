"""A real BERT of toy size with random weights, as BERTScore's encoder."""

from __future__ import annotations

from pathlib import Path

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS += ("left", "right", "lung", "liver", "mass", "nodule", "the", "a", "in", "of", "small", "large", "2", "two")
NUM_LAYERS = 2
NUM_POSITIONS = 32  # tokens of one text, its two marks included


def write_tiny_encoder(folder: Path, *, with_tokenizer_config: bool = True) -> str:
    """Save the encoder into an existing folder; returns it.

    Without a tokenizer config the folder is like that of BiomedBERT: a vocabulary, and no limit of length.
    """
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast  # type: ignore[attr-defined]

    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=NUM_POSITIONS,
        initializer_range=0.3,  # so that words and layers differ
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    if with_tokenizer_config:
        tokenizer = BertTokenizerFast.from_pretrained(folder, model_max_length=NUM_POSITIONS)
        assert len(tokenizer) == len(WORDS)
        tokenizer.save_pretrained(folder)
    return str(folder)
