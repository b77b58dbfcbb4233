"""Small tokenizers of the kinds that real models use, as tokenizer.json contents."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from smart_serve.frontend.tokenizer import TextTokenizer

_CHARS = "▁abcdefghijklmnopqrstuvwxyz[]/<>|.,?!'0123456789\nA"


def sentencepiece_like(
    kind: str, lstrip: bool = False, rstrip: bool = False
) -> tuple[dict[str, Any], Tokenizer]:
    """A byte-fallback BPE; `kind`: prepend (Llama-2), first or always (Metaspace schemes)."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *_CHARS]
    merges = [("▁", "a"), ("▁a", "b"), ("i", "n"), ("▁", "in"), ("[", "i"), ("<", "a")]
    names += [first + second for first, second in merges]
    vocab = {name: index for index, name in enumerate(names)}
    model = models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    if kind == "prepend":
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=kind, split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    flags = {"lstrip": lstrip, "rstrip": rstrip, "normalized": False}
    tokens = [AddedToken(name, special=True, **flags) for name in ("<s>", "</s>", "[INST]")]
    tokenizer.add_special_tokens(tokens)
    return json.loads(tokenizer.to_str()), tokenizer


def loaded(spec: dict[str, Any], folder: Path) -> TextTokenizer:
    (folder / "tokenizer.json").write_text(json.dumps(spec))
    return TextTokenizer.from_folder(folder)
