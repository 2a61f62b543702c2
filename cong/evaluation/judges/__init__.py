"""The kinds of judges: a program, the weak pair, a reward model; and those that a configuration names."""
