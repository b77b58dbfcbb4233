"""Drafters: what proposes the tokens that a target verifies."""
