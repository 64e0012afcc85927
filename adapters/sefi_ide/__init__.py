"""SeFi-IDE: a subject as one pair of tokens, for keys and for values, per stage of denoising (arXiv 2402.00631)."""
