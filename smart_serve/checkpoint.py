"""Weights by key prefix: a deployment reads only the part of a checkpoint that it runs.

Safetensors only; nothing is ever unpickled. Three key layouts of LLaVA are in the wild: hub folders
(`language_model.model.*`, `vision_tower.vision_model.*`), what transformers 5 saves
(`language_model.model.*`, `vision_tower.encoder.*`), and its names in memory
(`model.language_model.*`). A caller therefore passes layouts in order of preference.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from smart_serve.errors import ConfigError

Prefixes = Mapping[str, str]
"""Prefix in the checkpoint -> prefix in the module ("" for its root)."""

LANGUAGE_MODEL_LAYOUTS: tuple[Prefixes, ...] = (
    {"language_model.model.": "model.", "language_model.lm_head.": "lm_head."},
    {"model.language_model.": "model.", "lm_head.": "lm_head."},
    {"model.": "model.", "lm_head.": "lm_head."},
)
"""Where a causal language model (`model.*`, `lm_head.*`) stands in LLaVA and plain folders."""
VISION_TOWER_LAYOUTS: tuple[Prefixes, ...] = (
    {"vision_tower.vision_model.": ""},
    {"vision_tower.": ""},
    {"model.vision_tower.vision_model.": ""},
    {"model.vision_tower.": ""},
)
PROJECTOR_LAYOUTS: tuple[Prefixes, ...] = (
    {"multi_modal_projector.": ""},
    {"model.multi_modal_projector.": ""},
)
_PARTS = (
    *("model.", "lm_head.", "language_model."),
    *("visual.", "vision_tower.", "multi_modal_projector."),
)
"""Prefixes of all that a model of our families consists of."""
_WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DERIVED_SUFFIXES = ("rotary_emb.inv_freq", "embeddings.position_ids")
"""Constants that older transformers versions saved and today's modules compute."""

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; ConfigError when it is missing or is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} does not hold a JSON object")
    return value


def build_module(factory: Callable[[], ModuleT]) -> ModuleT:
    """A module with its computed buffers but without the cost of initialising its weights.

    `load_into` must fill it. Untouched memory costs nothing, so a model bigger than memory in
    float32 can be built and then loaded in bfloat16. For start-up only: it patches torch's
    initialisers while it runs.
    """
    with no_init_weights():
        module = factory()
    if isinstance(module, PreTrainedModel):
        module.tie_weights()
    return module.eval()


class Checkpoint:
    """The safetensors files of one model folder, opened only while they are read."""

    def __init__(self, folder: Path | str) -> None:
        """Reads names only. ConfigError when the folder, config.json or the weights are missing."""
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ConfigError(f"model folder {self.folder} does not exist")
        self.config = read_json(self.folder / "config.json")
        self._file_of = self._index()

    def names(self) -> tuple[str, ...]:
        """All tensor names, sorted."""
        return tuple(sorted(self._file_of))

    def check_parts(self) -> None:
        """ConfigError naming the first tensor that belongs to no part of a known model."""
        for name in self.names():
            if not name.startswith(_PARTS):
                raise self._unexpected(name)

    def tensors(self, prefixes: Prefixes) -> dict[str, torch.Tensor]:
        """The tensors under `prefixes`, renamed, as stored (CPU, stored dtype)."""
        return dict(self._stream(prefixes))

    def load_into(
        self,
        module: nn.Module,
        prefixes: Prefixes | Sequence[Prefixes],
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        """Fills `module` in place, one tensor at a time, strictly.

        `prefixes`: one layout, or layouts in order of preference. Parameters become `dtype` on
        `device`; buffers move but keep their dtype (rotary frequencies must stay float32).
        Errors: ConfigError naming the first tensor that is missing, unexpected, misshapen or of a
        quantised type.
        """
        layout = self._choose(prefixes)
        slots: dict[str, torch.Tensor] = module.state_dict(keep_vars=True)
        filled: set[int] = set()
        for name, tensor in self._stream(layout):
            slot = slots.get(name)
            if slot is None:
                if name.endswith(_DERIVED_SUFFIXES):
                    continue
                raise self._unexpected(name)
            if slot.shape != tensor.shape:
                raise ConfigError(
                    f"{self.folder}: tensor '{name}' has shape {tuple(tensor.shape)}, "
                    f"the model needs {tuple(slot.shape)}"
                )
            if isinstance(slot, nn.Parameter) and tensor.dtype not in _WEIGHT_DTYPES:
                # Its values mean nothing without the scales that go with them.
                raise ConfigError(
                    f"{self.folder}: tensor '{name}' is stored as {tensor.dtype}; quantised "
                    "checkpoints are not supported"
                )
            _fill(slot, tensor, dtype, device)
            filled.add(id(slot))
        # By identity, not by name: a tied head is filled through the embedding that it shares.
        for name, slot in slots.items():
            if id(slot) not in filled:
                raise ConfigError(f"{self.folder}: tensor '{name}' is missing in the checkpoint")
        _move_buffers(module, device)

    def _choose(self, prefixes: Prefixes | Sequence[Prefixes]) -> Prefixes:
        """The first layout whose first prefix occurs (a tied head need not be stored)."""
        layouts = [prefixes] if isinstance(prefixes, Mapping) else list(prefixes)
        for layout in layouts:
            if any(name.startswith(next(iter(layout))) for name in self._file_of):
                return layout
        tried = ", ".join(f"'{next(iter(layout))}*'" for layout in layouts)
        raise ConfigError(f"{self.folder}: no tensor under {tried} in the checkpoint")

    def _stream(self, prefixes: Prefixes) -> Iterator[tuple[str, torch.Tensor]]:
        wanted: dict[Path, list[tuple[str, str]]] = {}
        for name, path in sorted(self._file_of.items()):
            for prefix, replacement in prefixes.items():
                if name.startswith(prefix):
                    renamed = replacement + name[len(prefix) :]
                    wanted.setdefault(path, []).append((name, renamed))
                    break
        for path, pairs in wanted.items():
            try:
                with safe_open(path, framework="pt") as file:
                    held = frozenset(file.keys())
                    for name, renamed in pairs:
                        if name not in held:
                            raise ConfigError(f"{path} does not hold '{name}', against its index")
                        yield renamed, file.get_tensor(name)
            except (OSError, SafetensorError) as error:
                raise ConfigError(f"{path} is not a readable safetensors file") from error

    def _unexpected(self, name: str) -> ConfigError:
        return ConfigError(f"{self.folder}: unexpected tensor '{name}' in the checkpoint")

    def _index(self) -> dict[str, Path]:
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            shards = read_json(index).get("weight_map")
            if not isinstance(shards, dict):
                raise ConfigError(f"{index} has no weight_map")
            # Only the last path component: an index cannot point outside its folder.
            return {str(name): self.folder / Path(str(file)).name for name, file in shards.items()}
        single = self.folder / "model.safetensors"
        if not single.is_file():
            raise ConfigError(
                f"{self.folder} holds no model.safetensors (or its index); other formats are not "
                "read: load such a model with transformers and call save_pretrained"
            )
        try:
            with safe_open(single, framework="pt") as file:
                return dict.fromkeys(file.keys(), single)
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{single} is not a readable safetensors file") from error


def _fill(
    slot: torch.Tensor, tensor: torch.Tensor, dtype: torch.dtype, device: torch.device | str
) -> None:
    if isinstance(slot, nn.Parameter):
        slot.data = tensor.to(device=device, dtype=dtype)
        slot.requires_grad_(False)
    else:
        slot.copy_(tensor)


def _move_buffers(module: nn.Module, device: torch.device | str) -> None:
    for part in module.modules():
        for name, buffer in list(part.named_buffers(recurse=False)):
            part.register_buffer(
                name, buffer.to(device), name not in part._non_persistent_buffers_set
            )
