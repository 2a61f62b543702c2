"""How a step attends by torch's own operators alone: on any device, and as the oracle of the compiled kernels."""
