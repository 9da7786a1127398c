"""Running sequences: the plain scan for any cell, and faster paths for the relational memory."""
