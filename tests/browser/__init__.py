"""The notebooks as people use them: JupyterLab, a real kernel, a real browser. `make test-browser` runs these tests.

A package, so that its conftest and the one above it have names of their own.
"""
