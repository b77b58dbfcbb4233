"""`python -m smart_serve.bench`: the same as `smart-serve bench`."""

import argparse
import sys

from smart_serve.bench.command import add_arguments, run

parser = argparse.ArgumentParser(prog="smart-serve bench", description=__doc__)
add_arguments(parser)
sys.exit(run(parser.parse_args()))
