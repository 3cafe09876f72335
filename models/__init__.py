"""Small models with weights: builders for the tests, and the trained digits network that ships with the project.

Nothing here imports `passes` or `backends`; the wheel does not carry it.
"""
