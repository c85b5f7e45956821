"""Tokenizers: images <-> tokens, with the shift and scale of the tokens.

`base.py` has the contract. `trained.py` has those trained here, `pretrained.py` wraps the paper's published ones, and
`grouped.py` needs no weights: pixels, and neighbouring latents of any tokenizer joined. The latent cache that stores
their output is in `mar_bench/data`."""
