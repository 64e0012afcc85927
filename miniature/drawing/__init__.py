"""Who and what is drawn, what a picture is called, and the renderer."""
