"""Edit models: a DiT that attends to clean latents of a person's photos, beside the target it paints."""
