"""What the book's pages share, above the library: paper beside ours, plots, the page itself.

Its modules import from ``lnlsr_lib``, and none of that imports from here.
"""
