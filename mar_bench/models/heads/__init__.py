"""Heads: p(token | z) for one token, its training loss and how it is sampled.

`base.py` has the contract and classifier-free guidance, `layers.py` what several heads share. Start with
`cross_entropy.py`, the shortest head. Heads know neither orders nor backbones."""
