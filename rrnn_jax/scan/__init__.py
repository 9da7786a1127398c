"""How a sequence is run: the plain scan for any cell, and faster ways for the relational memory."""
