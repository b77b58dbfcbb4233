"""Which draft tokens the target accepts.

`match` serves any tree; `rules` names those that read what a tree was drawn from. All are lossless:
the law of the text is the target's, proven by exact enumeration in `tests/verification`.
"""
