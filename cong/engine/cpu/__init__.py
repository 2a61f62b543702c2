"""How a step is computed on a CPU by C++ of our own: attention, whole decoder layers, draws. Needs a compiler."""
