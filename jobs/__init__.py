"""Jobs for `ray job submit`: each reads a configuration, builds the pieces from `cong`, and runs them."""
