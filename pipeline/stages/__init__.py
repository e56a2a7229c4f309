"""The stages, a module each: a function that makes the step, and the pure function from tables to tables that it maps or folds."""
