"""The audit: every claim of a paper, compared with its own tables, with the literature and with our runs."""
