"""What files of weights hold: families of base models, readers, LoRA and embedding formats, names in every layout."""
