"""Tokenizers: images <-> tokens, with the shift and scale of the tokens.

`base.py` has the contract and the small convolutional autoencoder. `kl.py` and `vq.py` are trained here,
`pretrained.py` wraps the paper's published ones, `pixel.py` needs no weights, and `grouped.py` joins neighbouring
latents of any of them. The latent cache that stores their output is in `mar_bench/data`."""
