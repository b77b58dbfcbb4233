"""The pair that a command measures: named, or widened to a big model's shape."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from smart_serve.bench.simulator.shapes import SHAPES
from smart_serve.config import DtypeName, EngineConfig
from smart_serve.errors import ConfigError


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """What is loaded, and where to."""
    parser.add_argument("--model", default="bundled", help='"bundled" or a model folder')
    parser.add_argument(
        "--drafter",
        default="bundled",
        help='"bundled", a drafter folder, "draft_model:FOLDER" or "ngram"',
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto", choices=get_args(DtypeName))


def add_widen_arguments(parser: argparse.ArgumentParser) -> None:
    """Whether the pair is widened."""
    text = "the models in the shape of a big one, whose time is then measured"
    parser.add_argument("--widen", choices=sorted(SHAPES), help=text)
    text = "keep the widened models in this new folder"
    parser.add_argument("--widen-into", type=Path, metavar="FOLDER", help=text)


@contextmanager
def measured_models(args: argparse.Namespace) -> Iterator[None]:
    """`args` with the pair that is meant for its model and drafter, for a while. Raises
    `ConfigError`."""
    if args.widen_into and not args.widen:
        raise ConfigError("--widen-into is where the models of --widen are kept")
    if not args.widen:
        yield
        return
    from smart_serve.bench.widened import widened_as  # loaded here: it needs torch

    dtype_name = EngineConfig(dtype=args.dtype, device=args.device).dtype_name
    with widened_as(args.widen, args.model, args.drafter, dtype_name, args.widen_into) as pair:
        args.model, args.drafter = pair
        yield
