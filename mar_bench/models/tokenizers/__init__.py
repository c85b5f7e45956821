"""Tokenizers: images <-> tokens, with the shift and scale of the tokens.

`base.py` has the contract. `trained.py` has those trained here, `pretrained.py` wraps the paper's published ones,
`pixel.py` needs no weights, and `grouped.py` joins neighbouring latents of any of them. The latent cache that stores
their output is in `mar_bench/data`."""
