"""What drafters take from their target's checkpoint: its head, its embeddings, its vocabulary."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoConfig

from smart_serve.checkpoint import Checkpoint, Prefixes, build_module
from smart_serve.errors import ConfigError

_EMBEDDING_LAYOUTS: tuple[Prefixes, ...] = (
    {"language_model.model.embed_tokens.": ""},
    {"model.language_model.embed_tokens.": ""},
    {"model.embed_tokens.": ""},
)
_HEAD_LAYOUTS: tuple[Prefixes, ...] = (
    {"language_model.lm_head.": ""},
    {"lm_head.": ""},
    *_EMBEDDING_LAYOUTS,  # a tied head is not stored
)


class TargetParts:
    """Reads the target's configuration; weights only when they are asked for."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: str) -> None:
        self.folder = folder
        self.dtype = dtype
        self.device = device
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        text = config.get_text_config()
        self.image_token_id: int | None = getattr(config, "image_token_id", None)
        self.hidden_size: int = text.hidden_size
        self.vocab_size: int = text.vocab_size
        self.num_layers: int = text.num_hidden_layers

    def head(self) -> nn.Linear:
        """The target's output projection, [V, h]."""
        head = build_module(lambda: nn.Linear(self.hidden_size, self.vocab_size, bias=False))
        Checkpoint(self.folder).load_into(head, _HEAD_LAYOUTS, self.dtype, self.device)
        return head

    def embedding(self) -> nn.Embedding:
        """The target's input embeddings, [V, h]."""
        embedding = build_module(lambda: nn.Embedding(self.vocab_size, self.hidden_size))
        Checkpoint(self.folder).load_into(embedding, _EMBEDDING_LAYOUTS, self.dtype, self.device)
        return embedding

    def check_vocabulary(self, folder: Path, vocab_size: int) -> None:
        """That a draft model's tokens are the target's. Raises `ConfigError`.

        By their tokenizers, where both folders hold one: no id may stand for two tokens, while one
        side may have a few more (added tokens, padding of the matrix). By size otherwise.
        """
        own, other = _token_of(self.folder), _token_of(folder)
        if own and other:
            for token_id in own.keys() & other.keys():
                if own[token_id] != other[token_id]:
                    raise ConfigError(
                        f"draft model {folder}: token {token_id} is {other[token_id]!r} and the "
                        f"target's is {own[token_id]!r}; both must have one vocabulary"
                    )
        elif vocab_size != self.vocab_size:
            raise ConfigError(
                f"draft model {folder} has {vocab_size} tokens and the target "
                f"{self.vocab_size}; both must have one vocabulary"
            )


def _token_of(folder: Path) -> dict[int, str]:
    """Token by id; empty where the folder holds no tokenizer.json."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return {}
    try:
        vocabulary = Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True)
    except Exception as error:  # tokenizers raises bare Exception
        raise ConfigError(f"{path} is not a readable tokenizer") from error
    return {token_id: token for token, token_id in vocabulary.items()}
