"""Measurements over real files, one command each; every table in the documentation comes from here."""
