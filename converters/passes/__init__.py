"""The passes that turn a file's graph into the normalised one; pipeline.py has their order."""
