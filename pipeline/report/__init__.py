"""The report of a run: one HTML file that says what is in the corpus, what the sample asked for, what will be trained on, how sure
that is and what it took. `facts` reads the run, `page` makes the file; what a browser does with it is in `page.js`."""
