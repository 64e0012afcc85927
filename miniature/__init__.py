"""The miniature portrait world: drawn people, small enough that every method can be run and measured on a laptop."""
