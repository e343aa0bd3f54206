"""What runs on the board: a C program with the model in it, and a runner around it."""
