"""What goes from one deployment to another by value, and what through Ray's object store."""

BY_VALUE_BYTES = 2 * 2**20
"""Larger messages go by reference, as Serve's own hold 4 MiB; and so do their answers then, at
several times the cost for each."""
