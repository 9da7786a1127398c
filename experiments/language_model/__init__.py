"""Language modelling: from a text file to samples (paper section 4.4)."""
