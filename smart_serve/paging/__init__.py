"""The paged KV cache: block accounts, tensors, and rows packed for one forward."""
