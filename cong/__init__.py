"""cong: contrastive weak-to-strong generation and training.

Importing the package imports none of its parts: `import cong.config` needs no torch, `import cong.decoding`
needs nothing but torch.
"""

__version__ = "0.1.0"
