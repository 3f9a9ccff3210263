"""Many pictures of a table of requests into a folder: checked first, resumed after any death, none drawn twice.

`table` reads rows, `journal` keeps what is to be drawn and what is done, `runner` draws, `manifest` writes the result's
table and shards.
"""
