"""Boards as data, toolchains, emulators and the application that runs on a microcontroller."""
