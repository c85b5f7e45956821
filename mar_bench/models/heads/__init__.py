"""Heads: p(token | z) for one token, its training loss and how it is sampled.

`base.py` has the contract and classifier-free guidance, `layers.py` what several heads share. Start with `linear.py`,
whose heads are the shortest. Heads do not depend on orders or backbones."""
