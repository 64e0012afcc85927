"""What methods are worth in the miniature world: people nobody was trained on, and measurements on them."""
