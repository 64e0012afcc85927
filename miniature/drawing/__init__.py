"""Who and what is drawn, what an image is called, and the renderer."""
