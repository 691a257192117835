"""A run's life: its stages, record, files, log, lock, threads and processes, and the errors that a person can mend.

Nothing here knows a scan, a table or a model: the package imports nothing else of this project.
"""
