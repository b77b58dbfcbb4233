"""The bundled pair in the shape of a big model: the same tokens at the big model's cost.

Every matrix is embedded in one of the big model's size, and layers that add nothing fill up its
depth (`widening`). So time, memory and kernels are the big model's, while the answers, and how many
drafted tokens are accepted, are those of the bundled pair. In float32 they are equal; in bfloat16
as far as rounding lets them be.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file

from smart_serve.bench.simulator.shapes import SHAPES, ModelShape
from smart_serve.bench.widening import NEVER, Widening
from smart_serve.checkpoint import Checkpoint
from smart_serve.errors import ConfigError
from smart_serve.models.folders import resolve_drafter, resolve_model

_SHARD_BYTES = 2**31


def widen(
    target: Path, drafter: Path, shape: ModelShape, into: Path, dtype: torch.dtype
) -> tuple[Path, Path]:
    """Writes checkpoint folders `into`/target and `into`/drafter, and returns them.

    Raises `ConfigError` if the pair does not fit into `shape` or the dtype lacks the range, OSError
    if the disk is full.
    """
    if torch.finfo(dtype).max < -NEVER:
        raise ConfigError(f"{dtype} has too little range for a widened model: take bfloat16")
    folders = into / "target", into / "drafter"
    for folder, wide, num_layers in zip(
        (target, drafter), folders, (shape.num_layers, None), strict=True
    ):
        wide.mkdir(parents=True)
        source = Checkpoint(folder)
        text = source.config.get("text_config", source.config)
        widening = Widening(text, shape, dtype)
        for file in folder.iterdir():
            if file.suffix in (".json", ".jinja") and file.name != "config.json":
                shutil.copy(file, wide)
        num_layers = num_layers or text["num_hidden_layers"]
        config = widening.config(num_layers)
        if text is not source.config:
            config = {**source.config, "text_config": config}
        (wide / "config.json").write_text(json.dumps(config, indent=2))
        _write(wide, widening.tensors(source, num_layers))
    return folders


def described(shape: ModelShape) -> str:
    """What of a widened model is real, and what is borrowed."""
    layers = f"{shape.num_layers} layers"
    if shape.of_layers is not None:
        layers += f" of its {shape.of_layers}"
    return (
        f"{shape.name}: {layers}, hidden size {shape.hidden_size}, {shape.num_heads} query and "
        f"{shape.num_kv_heads} KV heads, {shape.vocab_size} tokens. Real: the matrices, the KV "
        "cache, the kernels and their time. Borrowed from the bundled pair: the weights' function, "
        "so answers and acceptance, the depth of drafter and vision encoder, and how many tokens a "
        "picture has."
    )


def widened_as(
    name: str, model: str | Path, drafter: str | Path, dtype_name: str, into: Path | None = None
) -> AbstractContextManager[tuple[Path, Path]]:
    """`widened_pair` of two models as `LLM` names them, in the shape that is called `name`; says on
    standard error what of it is real."""
    print(described(SHAPES[name]), file=sys.stderr)
    pair = resolve_model(model), resolve_drafter(drafter)
    return widened_pair(*pair, SHAPES[name], getattr(torch, dtype_name), into)


@contextmanager
def widened_pair(
    target: Path, drafter: Path, shape: ModelShape, dtype: torch.dtype, into: Path | None = None
) -> Iterator[tuple[Path, Path]]:
    """`widen` for a while; or to stay in the new folder `into`."""
    if into is not None:
        if into.exists():
            raise ConfigError(f"{into} exists: a widened model is written to a new folder")
        yield widen(target, drafter, shape, into, dtype)
        return
    with tempfile.TemporaryDirectory(prefix="smart-serve-") as folder:
        yield widen(target, drafter, shape, Path(folder), dtype)


def _write(folder: Path, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Files of some gigabytes each, and their index."""
    index: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}

    def close() -> None:
        if shard:
            file = f"model-{len(set(index.values())) + 1:05d}.safetensors"
            save_file(shard, folder / file)
            index.update(dict.fromkeys(shard, file))
            shard.clear()

    for name, tensor in tensors:
        shard[name] = tensor.contiguous()
        if sum(one.nbytes for one in shard.values()) > _SHARD_BYTES:
            close()
    close()
    table = {"metadata": {}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table))
