"""Verification: which draft tokens the target accepts."""
