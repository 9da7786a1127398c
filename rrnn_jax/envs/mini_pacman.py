MiniPacman = None
