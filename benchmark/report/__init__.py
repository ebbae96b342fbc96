"""The report: everything that the records say, as HTML, Markdown, LaTeX and CSV."""
