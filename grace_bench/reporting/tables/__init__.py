"""Tables of a summary, in LaTeX and Markdown."""
