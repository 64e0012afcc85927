"""What several rooms of tests share; pytest finds it, because `tests` is on its path."""
