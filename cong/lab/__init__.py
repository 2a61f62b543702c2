"""A tiny world with a known truth, in which the whole method can be made and measured on two CPU cores.

It holds the world, tiny networks, a plain sampler and a plain trainer (oracles for the fast ones), and the chain of the
method with its rivals. It knows nothing of HTTP and of Ray.
"""
