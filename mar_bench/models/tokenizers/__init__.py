"""Tokenizers: images <-> tokens, with the shift and scale of the tokens.

`base.py` has the contract, `trained.py` the tokenizers trained here; `pretrained.py` wraps the paper's published ones.
`grouped.py` has those without weights: pixels, and neighbouring latents of any tokenizer joined. The cache that stores
their output is in `mar_bench/data`."""
