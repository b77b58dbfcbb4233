"""Configuration of one engine: parsed once, frozen afterwards."""

from __future__ import annotations

import re
from typing import Literal, get_args

import msgspec

from smart_serve.errors import ConfigError

POLICY_NAMES: tuple[str, ...] = (
    *("off", "chain:K", "adaptive-chain", "static"),
    *("eagle2", "eagle2:NxD", "smart-paper", "smart"),
    *("delayed:K,L1,L2", "distinct:K,L", "smart-drawn", "selector"),
)
"""What may be asked for; K is a number of tokens from 1 to 16, N of nodes from 1 to 99, D of layers
from 1 to 16. A configuration may also say `static:FILE`; a request may not, for it must not name
files of the server. The last four draw their trees, and only with those may a rule other than
`match` verify: a trunk of L1 and then K branches of L2 tokens (1 to 8; 0 to 8, not both 0), K
different children of every node in L layers (1 to 4; 1 to 3), as many as pay, or what
a trained selector says."""
_POLICY = re.compile(
    r"off|chain:([1-9]|1[0-6])|adaptive-chain|static|smart-paper|smart"
    r"|eagle2(:([1-9]\d?)x([1-9]|1[0-6]))?"
    r"|delayed:[1-8],(?!0,0)[0-8],[0-8]|distinct:[1-4],[1-3]|smart-drawn|selector"
)
_STATIC_FILE = re.compile(r"static:.+")


def is_policy(name: str) -> bool:
    """Whether `name` is a speculation policy."""
    return _POLICY.fullmatch(name) is not None


def chain_length(policy: str) -> int | None:
    """K of `chain:K`; None for the other policies."""
    return int(policy.removeprefix("chain:")) if policy.startswith("chain:") else None


def tree_size(policy: str) -> tuple[int, int] | None:
    """(N, D) of `eagle2:NxD`: nodes of a tree, layers; None for the other policies."""
    found = re.fullmatch(r"eagle2:(\d+)x(\d+)", policy)
    return (int(found[1]), int(found[2])) if found else None


class SampledShape(msgspec.Struct, frozen=True):
    """A tree that is drawn: a trunk, and then `num_children` independent branches; or as many
    different children of every node; or up to that many, as `smart-drawn` decides."""

    num_children: int
    trunk: int
    depth: int
    with_replacement: bool
    most_nodes: int | None = None
    """Where the tree's size is decided while it is drawn."""

    @property
    def num_nodes(self) -> int:
        """The most that it can have."""
        if self.most_nodes is not None:
            return self.most_nodes
        if self.with_replacement:
            return self.trunk + self.num_children * (self.depth - self.trunk)
        return sum(self.num_children**layer for layer in range(1, self.depth + 1))

    @property
    def is_chain(self) -> bool:
        return self.most_nodes is None and self.num_nodes == self.depth


SMART_DRAWN = SampledShape(4, 0, 12, with_replacement=False, most_nodes=32)
"""Bounds of one tree of `smart-drawn`. Room for the largest is asked for beforehand, as room must
not depend on what is drawn: 32 is two KV blocks. A fifth sibling is hardly ever accepted."""

SELECTOR_NODES = 16
"""Of the largest tree that `selector` may choose; beyond, hardly anything is ever accepted."""
_DECIDED_LATER = {
    "smart-drawn": SMART_DRAWN,
    "selector": SampledShape(4, 8, 16, with_replacement=True, most_nodes=SELECTOR_NODES),
}


def sampled_shape(policy: str) -> SampledShape | None:
    """Of the policies that draw their trees; None for those that take the likeliest tokens."""
    if policy in _DECIDED_LATER:
        return _DECIDED_LATER[policy]
    kind, _, sizes = policy.partition(":")
    if kind not in ("delayed", "distinct") or not is_policy(policy):
        return None
    children, *lengths = (int(size) for size in sizes.split(","))
    trunk = lengths[0] if kind == "delayed" else 0
    return SampledShape(children, trunk, sum(lengths), with_replacement=kind == "delayed")


VERIFICATION_RULES: tuple[str, ...] = (
    *("match", "naive", "specinfer", "spectr", "traversal", "block"),
)


def rule_objection(rule: str, policy: str) -> str | None:
    """Why trees of `policy` must not be verified by `rule`, or None."""
    if rule == "match" or policy == "off":
        return None
    shape = sampled_shape(policy)
    if shape is None:
        return (
            f"verification '{rule}' reads the distribution that tokens were drawn from, and policy "
            f"'{policy}' takes the likeliest ones: use 'match', or a policy that draws "
            "(delayed:K,L1,L2, distinct:K,L, smart-drawn or selector)"
        )
    if rule == "block" and not shape.is_chain:
        return f"verification 'block' is for chains (delayed:1,L1,L2), not for '{policy}'"
    if rule == "spectr" and not (shape.with_replacement or shape.num_children == 1):
        return f"verification 'spectr' needs independent draws, which those of '{policy}' are not"
    return None


Ablation = Literal[
    "path-mean", "even-split", "fitted-curve", "no-calibration", "no-fallback", "no-entry-fee"
]
"""What `smart` can be told to do without; see `smart_serve.speculation.ablations`."""
ABLATIONS: tuple[Ablation, ...] = get_args(Ablation)


class SpeculationConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the draft trees; within them the policy decides."""

    policy: str = "smart"
    """Of requests that do not name one. Here it may also be `static:FILE`."""
    max_depth: int = 12
    """Layers of a tree. Beyond 12 even a path of very good drafts is worth little (0.95^12 = 0.54
    of a token for a whole draft layer); what does not pay, `smart` does not draft."""
    top_k: int = 10
    """Children of one node that are looked at (EAGLE-2's and MSD's default)."""
    max_nodes: int = 2048
    """Draft nodes of one step, over all sequences of the batch: four each for a batch of 512. What
    a step is better off without, `smart` leaves out by itself."""
    eagle2_nodes: int = 60
    """Nodes of a tree of `eagle2`; this and the next two are EAGLE-2's published defaults."""
    eagle2_depth: int = 6
    """Layers of a tree of `eagle2`."""
    eagle2_top_k: int = 10
    """Children of one node in a tree of `eagle2`, and nodes that each layer goes on from."""
    paper_nodes: int = 200
    """B_verify of `smart-paper`, over the batch: the best of its paper's table 4."""
    overlap: bool = True
    """With a drafter in another process: verify one half of the batch while the other half is
    drafted for, where that is predicted to be faster. Not for policies that draw their trees."""
    ablation: Ablation | None = None
    """For benchmarks alone: `smart` without one of its parts, to see what that part brings."""

    def __post_init__(self) -> None:
        if not is_policy(self.policy) and not _STATIC_FILE.fullmatch(self.policy):
            raise ConfigError(f"policy '{self.policy}' is not one of {', '.join(POLICY_NAMES)}")
        if self.max_depth < 1 or self.top_k < 1 or self.max_nodes < 1:
            raise ConfigError("speculation: max_depth, top_k and max_nodes must be at least 1")


DtypeName = Literal["auto", "float32", "bfloat16", "float16"]


def dtype_on(device: str, dtype: DtypeName) -> str:
    """What `dtype` means on `device`: auto is bfloat16 on a GPU, which is built for it, and float32
    elsewhere."""
    if dtype != "auto":
        return dtype
    return "bfloat16" if device.startswith("cuda") else "float32"


class EngineConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One replica's engine."""

    dtype: DtypeName = "auto"
    """Of weights, activations and KV cache."""
    device: str = "cpu"
    """As torch names it."""
    block_tokens: int = 16
    """Tokens of one KV block."""
    kv_tokens: int = 32_768
    """Tokens of KV cache in all (rounded down to whole blocks)."""
    max_running: int = 64
    """Sequences in the batch."""
    max_waiting: int = 256
    """Sequences queued before the engine refuses more."""
    prefill_chunk_tokens: int = 256
    """Prompt tokens that one step prefills, over all sequences, so that a long prompt does not
    stall running streams."""
    prefix_reuse: bool = True
    """Requests that begin alike, with the same pictures, share the KV blocks of what is alike."""
    speculation: SpeculationConfig = SpeculationConfig()
    """Policy and bounds of the draft trees."""

    @property
    def dtype_name(self) -> str:
        """`dtype`, with auto made out."""
        return dtype_on(self.device, self.dtype)

    def __post_init__(self) -> None:
        for name in ("block_tokens", "kv_tokens", "max_running", "prefill_chunk_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1")
        if self.max_waiting < 0:
            raise ConfigError("max_waiting must not be negative")
        if self.kv_tokens < self.block_tokens:
            raise ConfigError("kv_tokens must hold at least one block")
