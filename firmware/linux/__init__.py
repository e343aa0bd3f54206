"""Boards that run Linux, reached over SSH: what is there, releases, and what runs on them."""
