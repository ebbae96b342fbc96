"""The report: everything that the records say, as HTML, PDF, Markdown, LaTeX and CSV."""
