"""What runs on a board while it is measured."""
