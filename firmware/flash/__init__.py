"""Writes images to boards: one interface for every way that an image gets there.

A board's TOML file lists its runners in order of preference (``[flash] runners``) and what each
needs to know (``[flash.<runner>]``). A runner says whether it can work on this machine, gives the
exact commands, runs them, and has the board's memory compared with the image afterwards.
"""
