"""BERTScore F1 of answers (arXiv 1904.09675) by the bert-score library: no baseline rescaling, no idf.

The encoder runs on CPU wherever it is placed: the GPUs are the learner's and the engines'.
"""

from __future__ import annotations

import math
import os
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrpo.choices import EncoderPlacement
from mrpo.config import BertScoreConfig
from mrpo.errors import ConfigError, NonFiniteError

_MAX_TOKENS = 512  # of one text, where neither tokenizer nor encoder allows fewer; the rest is cut off
_PROBE = "left lung"
_PROBE_TOLERANCE = 1e-3  # of the F1 of equal texts, which is 1


def check_encoder(config: BertScoreConfig) -> None:
    """Whether an encoder of enough layers is where the configuration says; reads no weights.

    Raises:
        ConfigError: there is none, or `num_layers` is more than it has.
    """
    from transformers import AutoConfig

    folder = Path(_address(config))
    if _is_path(_address(config)) and not folder.is_dir():
        raise _unusable(config, FileNotFoundError(f"no such folder: {folder.absolute()}"))
    try:
        encoder = AutoConfig.from_pretrained(_address(config))
        num_layers, model_type = int(encoder.num_hidden_layers), str(encoder.model_type)
    except (OSError, ValueError, AttributeError) as error:
        raise _unusable(config, error) from None
    if config.num_layers > num_layers:
        raise ConfigError(
            f"reward.answer.bertscore.num_layers={config.num_layers} is more than the {num_layers} layers of "
            f"reward.answer.bertscore.model={config.model}; set it to at most {num_layers}"
        )
    if "t5" in _address(config) and "t5" not in model_type:
        raise ConfigError(
            f"reward.answer.bertscore.model={config.model} is of type {model_type}, and bert-score takes it for a T5 "
            "because of the 't5' in its name; give it by a path without these letters (a link will do)"
        )


class BertScoreEncoder:
    """An encoder that compares answers; usable from several threads, and as an actor."""

    def __init__(self, config: BertScoreConfig) -> None:
        """Nothing is loaded yet. `config.model` must be set."""
        self._config = config
        self._scorer: Any = None
        self._lock = threading.Lock()  # fast tokenizers are not safe to share

    def load(self) -> None:
        """Load the encoder, and try it; a second call does nothing.

        Raises:
            ConfigError: it is not there, has too few layers, or does not work.
        """
        with self._lock:
            if self._scorer is None:
                self._scorer = self._loaded()

    def f1(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """F1 in [0, 1] of (answer, gold) pairs, in their order.

        A text of which the tokenizer leaves nothing has no F1 to compute; it overlaps with nothing and scores 0. So do
        texts that are on the whole opposites, for which the formula leaves [0, 1]. What is longer than the encoder can
        read is cut off. A pair's F1 may change in the seventh digit with the pairs it is batched with.

        Raises:
            ConfigError: see `load`.
            NonFiniteError: the encoder gave NaN for a text that has tokens.
        """
        self.load()
        with self._lock:
            readable = {text: self._has_tokens(text) for text in dict.fromkeys(text for pair in pairs for text in pair)}
            asked = list(dict.fromkeys(pair for pair in pairs if readable[pair[0]] and readable[pair[1]]))
            found = dict(zip(asked, self._score(self._scorer, asked), strict=True))
        return [found.get(pair, 0.0) for pair in pairs]

    def _loaded(self) -> Any:
        from bert_score import BERTScorer
        from safetensors import SafetensorError

        config = self._config
        check_encoder(config)
        if config.placement == EncoderPlacement.ACTOR:
            import torch

            torch.set_num_threads(
                os.cpu_count() or 1
            )  # Ray allows one; engines and learner wait while answers are scored
        try:
            scorer: Any = BERTScorer(
                model_type=_address(config),
                num_layers=config.num_layers,
                device="cpu",
                idf=False,
                rescale_with_baseline=False,
            )
            tokenizer, encoder = scorer._tokenizer, scorer._model.config.to_dict()
            if len(tokenizer) <= len(tokenizer.all_special_ids):  # every word would be the unknown one, and equal
                raise ValueError("its tokenizer has no vocabulary")
            # A folder without tokenizer_config.json sets no limit: bert-score then fails on every text.
            limits = [int(tokenizer.model_max_length), _MAX_TOKENS]
            limits += [encoder["max_position_embeddings"]] if "max_position_embeddings" in encoder else []
            tokenizer.model_max_length = min(limits)
            same, _ = self._score(scorer, [(_PROBE, _PROBE), (" ".join([_PROBE] * _MAX_TOKENS), _PROBE)])
        except (
            OSError,
            ValueError,
            AttributeError,
            RuntimeError,
            AssertionError,
            IndexError,
            SafetensorError,
            NonFiniteError,
        ) as error:
            raise _unusable(config, error) from None
        if abs(same - 1.0) > _PROBE_TOLERANCE:
            raise _unusable(config, ValueError(f"it finds {_PROBE!r} and {_PROBE!r} alike by {same:g}, not 1"))
        return scorer

    def _score(self, scorer: Any, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """F1 of distinct pairs of texts that have tokens."""
        if not pairs:
            return []
        answers, golds = [answer for answer, _ in pairs], [gold for _, gold in pairs]
        precisions, recalls, f1s = (
            scores.tolist() for scores in scorer.score(answers, golds, batch_size=self._config.batch_size)
        )
        # bert-score turns an F1 of NaN into 0; in its parts a broken encoder still shows.
        for pair, precision, recall in zip(pairs, precisions, recalls, strict=True):
            if not (math.isfinite(precision) and math.isfinite(recall)):
                raise NonFiniteError(f"reward.answer.bertscore.model={self._config.model} gave NaN or Inf for {pair}")
        return [min(1.0, max(0.0, f1)) for f1 in f1s]

    def _has_tokens(self, text: str) -> bool:
        """Whether the encoder sees anything of the text besides its marks of beginning and end."""
        from bert_score.utils import sent_encode

        if not text.strip():
            return False
        tokenizer = self._scorer._tokenizer
        return not {tokenizer.cls_token_id, tokenizer.sep_token_id}.issuperset(sent_encode(tokenizer, text))


def _address(config: BertScoreConfig) -> str:
    assert config.model is not None
    return str(Path(config.model).expanduser()) if config.model.startswith("~") else config.model


def _is_path(address: str) -> bool:
    """Whether the text can only be meant as a path: a hub id is one name, or two with one "/" between."""
    return address.startswith((".", "/")) or "\\" in address or address.count("/") > 1 or address.endswith("/")


def _unusable(config: BertScoreConfig, error: Exception) -> ConfigError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return ConfigError(
        f"reward.answer.bertscore.model={config.model!r} cannot be loaded on {socket.gethostname()} ({reason}); give "
        "the hub id of a BERT-like encoder or, without network, its folder; null scores by ROUGE and BLEU alone"
    )
