"""The method from end to end on one seed: what is made, what is shown of it, and what it leaves on disk."""
