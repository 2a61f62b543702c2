"""Training: a loop over batches with an objective and a backend, and all that must survive a crash of it.

Knows no engine, no HTTP and no Ray; a method is a value, never a branch of the loop.
"""
