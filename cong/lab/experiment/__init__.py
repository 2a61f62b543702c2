"""Every claim of the lab over several seeds: what is measured, whether it holds, and the tables and page about it."""
