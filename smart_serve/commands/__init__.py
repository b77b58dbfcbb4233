"""Commands of `smart-serve` that talk to a running server, and its completion script."""
