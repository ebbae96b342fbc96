"""The audit: what a paper claims, and what its tables, the literature and our runs say of that."""
