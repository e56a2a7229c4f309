"""The report of a run: one HTML file about the corpus, the specialist sample, the new corpus, the uncertainty and the cost.

`page_content` reads the run, `page` renders the HTML, and `templates/` has the HTML template, the style sheet and the browser
script.
The package may import `results`, `costs`, `stages` and the layers below them, but not `graph` or the command line.
"""
