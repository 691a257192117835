"""What a run shows: its page, the figures and brain pictures in it, the tables on the terminal, and `--VERIFY`.

Files and numbers are read here and drawn. The numbers come from `survival`, the maps of the brain from `explain` and
`attribution`; which stages are done is the business of `runs`.
"""
