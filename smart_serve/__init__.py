"""smart-serve: tree speculative decoding for multimodal LLMs."""
